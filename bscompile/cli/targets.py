"""``bscompile targets``: what this machine has, what each target needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bscompile.cli.talk import Talk, talk_options

if TYPE_CHECKING:
    from bscompile.targets.base import Availability, Target


@click.command(name="targets")
@talk_options
def command(talk: Talk) -> None:
    """Show what this machine has and what each target needs."""
    from bscompile.targets import TARGETS, get_target

    targets = [get_target(name) for name in TARGETS]
    found = {target.name: target.detect() for target in targets}
    if talk.json:
        talk.give({"targets": [_row(target, found[target.name]) for target in targets]})
        return
    for target in targets:
        here = found[target.name]
        click.echo(f"{target.name}: {target.description}")
        click.echo(f"  here: {here.detail}")
        abilities = {"compiles for it": here.compiles, "runs it": here.runs}
        can = [ability for ability, present in abilities.items() if present]
        click.echo(f"  this machine {' and '.join(can) or 'neither compiles for it nor runs it'}")
        variants = [f"{target.name}:{variant}" for variant in target.variants if variant]
        if variants:
            click.echo(f"  variants: {', '.join(variants)}")
        if here.install:
            click.echo(f"  needs: {here.install}")


def _row(target: Target, here: Availability) -> dict[str, object]:
    return {
        "name": target.name,
        "description": target.description,
        "variants": [variant for variant in target.variants if variant],
        "compiles": here.compiles,
        "runs": here.runs,
        "detail": here.detail,
        "install": here.install,
    }
