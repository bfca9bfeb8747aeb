"""Attribute names of the OpenTelemetry GenAI conventions, and spellings met in the wild.

The conventions (schema 1.42.0 of the gen-ai line) are all at status Development; every name is in
this module, the standard one first.
"""

from __future__ import annotations

SCHEMA = "1.42.0"
OPERATION = ("gen_ai.operation.name",)
MODEL_OPERATIONS = ("chat", "generate_content", "text_completion")
MODEL = ("gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
AGENT = ("gen_ai.agent.name", "gen_ai.agent.id")
INPUT_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
OUTPUT_TOKENS = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
)
CACHE_READ = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.input_tokens.cached",
    "llm.token_count.prompt_details.cache_read",
)
CACHE_WRITE = (
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "llm.token_count.prompt_details.cache_write",
)
REASONING = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.output_tokens.reasoning",
    "llm.token_count.completion_details.reasoning",
)
INPUT_MESSAGES = ("gen_ai.input.messages",)
OUTPUT_MESSAGES = ("gen_ai.output.messages",)
SYSTEM = ("gen_ai.system_instructions",)
TOOL_DEFINITIONS = ("gen_ai.tool.definitions",)
TOOL_NAME = ("gen_ai.tool.name", "tool.name")
TOOL_CALL_ID = ("gen_ai.tool.call.id",)
TOOL_ARGUMENTS = ("gen_ai.tool.call.arguments", "input.value")
TOOL_RESULT = ("gen_ai.tool.call.result", "output.value")
SPAN_KIND = ("openinference.span.kind",)
DETAILS_EVENT = "gen_ai.client.inference.operation.details"
ERROR_TYPE = ("error.type",)
