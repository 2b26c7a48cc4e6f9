"""How the bridge is doing, in the words that a service manager or a health check shows to people."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """`stuck` names the parts that broke their promise; `lacks` says in plain words what is missing."""

    gateways: int
    stuck: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        return not self.stuck

    def __str__(self) -> str:
        if self.lacks:
            return "; ".join(self.lacks)
        return f"publishing {'one gateway' if self.gateways == 1 else f'{self.gateways} gateways'}"
