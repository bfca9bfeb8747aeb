"""The rewrite rules, in the order in which they apply.

Each is a function in the file of its name, with a fixture `tests/fixtures/rules/<name>.txt` on
which the plan before and after runs on the simulated engine: equal rows, never more calls.
docs/adding-a-rule.md tells how to add one.
"""

from __future__ import annotations

from planner.rewrite import Rule
from planner.rules.batch_sql_lookups import batch_sql_lookups
from planner.rules.choose_with_one_token import choose_with_one_token
from planner.rules.derive_sql_parameters import derive_sql_parameters
from planner.rules.exit_loops_early import exit_loops_early
from planner.rules.fold_constants import fold_constants
from planner.rules.fuse_maps import fuse_maps
from planner.rules.inline_texts import inline_texts
from planner.rules.order_model_predicates import order_model_predicates
from planner.rules.prune_dead_branches import prune_dead_branches
from planner.rules.prune_unread_values import prune_unread_values
from planner.rules.pull_cheap_predicates import pull_cheap_predicates
from planner.rules.push_filters_down import push_filters_down
from planner.rules.push_limits_down import push_limits_down
from planner.rules.share_equal_calls import share_equal_calls
from planner.rules.share_equal_queries import share_equal_queries
from planner.rules.unnest_maps import unnest_maps
from planner.rules.unsafe_fuse_calls import unsafe_fuse_calls
from planner.rules.unsafe_hoist_stable_parts import unsafe_hoist_stable_parts
from planner.rules.unsafe_prune_answer_fields import unsafe_prune_answer_fields

RULES: tuple[Rule, ...] = (
    # Constants first: they decide branches, and become literals.
    Rule(fold_constants),
    Rule(prune_dead_branches),
    # Before anything that counts readers: what nobody reads is no reader.
    Rule(prune_unread_values, drops_unread=True),
    # Before calls are compared: a text that is built for a prompt hides what the prompt is.
    Rule(inline_texts),
    Rule(share_equal_queries),
    # After the rules that change prompts: it gives them their one form.
    Rule(share_equal_calls, drops_unread=True),
    Rule(fuse_maps),
    # After maps are fused, so that a chain of maps is unnested at once; before filters go down,
    # since a filter over elements can then go below the calls of the map.
    Rule(unnest_maps),
    Rule(push_filters_down),
    Rule(push_limits_down),
    # After filters have gone down: those that meet are ordered.
    Rule(pull_cheap_predicates),
    Rule(order_model_predicates),
    Rule(exit_loops_early),
    Rule(choose_with_one_token),
    Rule(derive_sql_parameters),
    Rule(batch_sql_lookups),
    # These change what a model sees. The layout comes last: it needs the final prompts.
    Rule(unsafe_prune_answer_fields, default=False),
    Rule(unsafe_fuse_calls, default=False),
    Rule(unsafe_hoist_stable_parts, default=False),
)
"""Every rule. The place of one that has no comment does not matter."""
