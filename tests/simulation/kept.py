"""Seeds that found something, and what. What a seed does changes with the code; kept they are all
the same, since what they met was unusual once."""

KEPT: dict[int, str] = {
    0: "gateways without the lease asked for it without a pause (Upkeep.wait)",
    3007548: "a queue tried in vain while a member came back is left alone for ever longer "
    "(Upkeep._try_all_at; bounded by PATIENCE_S)",
    1090: "a walk whose progress could not be saved ended the gateway (progress.each)",
}
