"""One audit: every attack on every subject with every seed, piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from tqdm import tqdm

from qtl_training.audit.attributes import Attributes
from qtl_training.audit.inversion import Inversion
from qtl_training.audit.lengths import Lengths
from qtl_training.audit.settings import AuditSettings
from qtl_training.audit.target import Attack, Target
from qtl_training.audit.text import Text

ATTACK_OF: Final[dict[str, Callable[[Target], Attack]]] = {
    "inversion": Inversion,
    "attributes": Attributes,
    "lengths": Lengths,
    "text": Text,
}

Pieces = dict[str, dict[str, list[dict[str, Any]]]]
"""Attack -> subject -> numbers of each seed."""


def run_attacks(
    settings: AuditSettings, target: Target, *, clock: Callable[[], float] = time.monotonic
) -> Pieces:
    """Makes every piece, or takes it from the work folder where it is there already.

    Args:
        settings: which attacks, and how many seeds.
        target: what is attacked.
        clock: seconds, for the time each piece took.
    """
    attacks = {name: ATTACK_OF[name](target) for name in settings.attacks}
    total = settings.seeds * sum(len(attack.subjects) for attack in attacks.values())
    found: Pieces = {}
    with tqdm(total=total, desc="audit", unit="piece", disable=not target.progress or None) as bar:
        for name, attack in attacks.items():
            found[name] = {subject: [] for subject in attack.subjects}
            for subject in attack.subjects:
                for seed in range(1, settings.seeds + 1):
                    bar.set_postfix_str(f"{name}, {subject}, seed {seed}")
                    numbers = target.work.done(attack.key, subject, seed)
                    if numbers is None:
                        begun = clock()
                        piece = attack.make(subject, seed)
                        numbers = {**piece.numbers, "seconds": clock() - begun}
                        target.work.finish(attack.key, subject, seed, numbers, piece.pictures)
                    found[name][subject].append(numbers)
                    bar.update()
    return found
