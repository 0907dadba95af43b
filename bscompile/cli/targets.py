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
        variants = [f"{target.name}:{variant}" for variant in _own_variants(target)]
        if variants:
            click.echo(f"  variants: {', '.join(variants)}")
        if here.install:
            click.echo(f"  needs: {here.install}")
        for variant, served in target.elsewhere.items():
            click.echo(f"  {target.name}:{variant}: {served.description}")
            found_there = served.detect()
            needs = f"; needs: {found_there.install}" if found_there.install else ""
            click.echo(f"    here: {found_there.detail}{needs}")


def _own_variants(target: Target) -> list[str]:
    """Those that no other manifest serves."""
    return [name for name in target.variants if name and name not in target.elsewhere]


def _row(target: Target, here: Availability, name: str = "") -> dict[str, object]:
    rows = [_row(t, t.detect(), f"{target.name}:{v}") for v, t in target.elsewhere.items()]
    return ({"elsewhere": rows} if rows else {}) | {
        "name": name or target.name,
        "description": target.description,
        "variants": [variant for variant in target.variants if variant],
        "compiles": here.compiles,
        "runs": here.runs,
        "detail": here.detail,
        "install": here.install,
    }
