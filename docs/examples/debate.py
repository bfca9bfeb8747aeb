"""A debate: three agents that disagree, and a judge with a typed verdict.

    halo run debate.py:debate --input questions.jsonl --out runs/debate

`debate.yaml` is the same workflow; both build the same plan.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

import halo

lm = halo.Model()  # the session's model: --model on the command line, or the default


class Verdict(BaseModel):
    winner: Literal["for", "against"]
    reason: str


@halo.workflow
def debate(question: str) -> Verdict:
    advocate = lm.gen(
        f"Question: {question}\n"
        "You are the advocate. Argue FOR, in at most three sentences, with your strongest reason "
        "first.",
        max_tokens=80,
        name="advocate",
    )
    opponent = lm.gen(
        f"Question: {question}\n"
        "You are the opponent. Argue AGAINST, in at most three sentences, and answer the advocate."
        f"\nThe advocate said: {advocate}",
        max_tokens=80,
        name="opponent",
    )
    sceptic = lm.gen(
        f"Question: {question}\n"
        "You are the sceptic. You believe neither side. In at most two sentences, name the weakest "
        f"claim of each.\nThe advocate said: {advocate}\nThe opponent said: {opponent}",
        max_tokens=60,
        name="sceptic",
    )
    return lm.gen(
        f"Question: {question}\n"
        f"FOR: {advocate}\n"
        f"AGAINST: {opponent}\n"
        f"A sceptic's remarks: {sceptic}\n"
        "You are the judge. Who argued better? Give the winner and one short sentence as the "
        "reason.",
        system="You judge debates by the quality of the arguments, not by your own opinion.",
        out=Verdict,
        max_tokens=80,
        name="judge",
    )
