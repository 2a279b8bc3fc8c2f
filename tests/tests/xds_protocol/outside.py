#!/usr/bin/env python3
"""Two proxies after the same pushes, seen from outside: stats and /config_dump of one must be those of the other.

    outside.py --proxy torus-proxy --envoy envoy

Prints every difference that is not explained here; the exit code is 1 where there is one.
"""

import argparse
import json
import re
import sys

import cases
import resources as res
import steps
from steps import acks, asks, gets, nacks, push, wait

# Accepted and refused, changed and removed, waiting and drained: of every kind.
SCRIPT = (
    *cases.SERVING,
    push("cds", {"bad": cases.BAD_CLUSTER}, keep=False), nacks("cds"),
    push("lds", {"bad": {"name": "bad"}}, keep=False), nacks("lds"),
    push("rds", {"r": res.table("r", {})}), nacks("rds"),
    push("eds", {"c": cases.endpoints("c", "b", priority=200)}), nacks("eds"),
    push("eds", {"c": cases.endpoints("c", "b", locality={"region": "r1", "zone": "z1"})}), acks("eds"), gets("l", 200, "b"),
    push("cds", {"gone": cases.static("gone")}), acks("cds"), push("cds", remove=["gone"]), acks("cds"),
    push("lds", {"k": cases.fixed("k", "k")}), acks("lds"), gets("k", 200, "k"), push("lds", remove=["k"]), acks("lds"),
    push("cds", {"d": res.eds("d", fetch_timeout="0s")}), asks("eds", {"c", "d"}),
    push("lds", {"m": cases.listener("m", res.rds("s", "0s"))}), asks("rds", {"r", "s"}),
    push("lds", {"l": cases.listener("l", res.rds("t", "0s"))}), asks("rds", {"r", "s", "t"}),
    # The drain of what was removed ends.
    wait(2.5),
)
STATS = (
    r"cluster_manager\.(?!cluster_added|cluster_updated)|listener_manager\.|control_plane\.|http\.in\.rds\.|"
    r"cluster\.[cd]\.(update_|init_fetch|assignment_|warming|membership_(total|healthy|change))"
)
# Names that are left out, and why.
EXPLAINED = {
    r"\.(update_time|config_reload_time_ms)$": "the time of the run",
    r"\.version$": "a hash of which a gauge of torus-proxy holds 62 bits; version_text is compared",
    r"^cluster_manager\.cluster_added$": "Envoy counts a cluster that it then refuses",
    r"^listener_manager\.listener_in_place_updated$": "Envoy moves a listener's filter chains in place; torus-proxy counts a modification",
    r"^listener_manager\.workers_": "of the process",
    r"^cluster\.[cd]\.update_duration$": "not measured for endpoints",
    r"^cluster\.[cd]\.membership_change$": "Envoy counts the first assignment of none",
}


def observe(binary, is_envoy, delta):
    case = steps.Running(binary, is_envoy, delta, {})
    try:
        case.proxy = case.start()
        for number, step in enumerate(SCRIPT, 1):
            try:
                step(case)
            except steps.Differs as why:
                raise SystemExit(f"{binary}: step {number}: {why}") from why
        text = case.proxy.admin("/stats")[1]
        dump = json.loads(case.proxy.admin("/config_dump?include_eds")[1])
        waiting = json.loads(case.proxy.admin("/init_dump")[1])
        names = {str(port): f"port of {name}" for name, port in case.ports.items()}
        names.update({str(it.port): f"backend {name}" for name, it in case.backends.items()})
        names[str(case.plane.port)] = "control plane"
        return stats_of(text), dump_of(dump, names), waiting_of(waiting)
    finally:
        case.end()


def stats_of(text):
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        if re.match(STATS, name) and not any(re.search(pattern, name) for pattern in EXPLAINED):
            found[name] = "a histogram" if "No recorded" in value or "P50" in value else value
    return found


def dump_of(dump, names):
    """Everything but the bootstrap, with names for ports."""
    found = {}
    for config in dump["configs"]:
        kind = config.pop("@type").rpartition(".")[2]
        if kind != "BootstrapConfigDump":
            found[kind] = plain(config, names)
    return found


# Fields that are left out: times, what Envoy fills in by itself, and what it has no more after the next answer.
LEFT_OUT = {"last_updated", "error_state", "policy", "health_check_config"}


def plain(value, names):
    if isinstance(value, list):
        return sorted((plain(item, names) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, dict):
        value = {field: it for field, it in value.items() if field not in LEFT_OUT}
        if "lb_endpoints" in value and value.get("load_balancing_weight") == 0:
            value.pop("load_balancing_weight")
        # Envoy keeps the version of a listener whose chains it moves in place.
        if "warming_state" in value:
            value["warming_state"] = {field: it for field, it in value["warming_state"].items() if field != "version_info"}
        return {field: plain(it, names) for field, it in value.items()}
    return names.get(str(value), value) if isinstance(value, int) else value


def waiting_of(dump):
    entries = dump.get("unready_targets_dumps", [])
    return sorted((entry["name"].split()[:4][-1], entry["target_names"]) for entry in entries)


def differences(path, torus, envoy):
    if isinstance(torus, dict) and isinstance(envoy, dict):
        for field in sorted(set(torus) | set(envoy)):
            yield from differences(f"{path}/{field}", torus.get(field), envoy.get(field))
    elif isinstance(torus, list) and isinstance(envoy, list) and len(torus) == len(envoy):
        for index, (one, other) in enumerate(zip(torus, envoy)):
            yield from differences(f"{path}/{index}", one, other)
    elif torus != envoy:
        yield f"{path}: torus-proxy {torus!r}, Envoy {envoy!r}"


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--proxy", required=True)
    flags.add_argument("--envoy", required=True)
    flags = flags.parse_args()
    count = 0
    for variant in ("sotw", "delta"):
        torus, envoy = observe(flags.proxy, False, variant == "delta"), observe(flags.envoy, True, variant == "delta")
        if variant == "delta":
            # In delta Envoy begins with two attempts at what it asks everything of.
            for seen in (torus, envoy):
                for name in ("cluster_manager.cds.update_attempt", "listener_manager.lds.update_attempt"):
                    seen[0].pop(name, None)
                seen[0].pop("control_plane.pending_requests", None)
        found = []
        for what, one, other in zip(("stats", "config_dump", "init_dump"), torus, envoy):
            found += differences(what, one, other)
        count += len(found)
        print(f"{variant}: {len(torus[0])} stats, {len(torus[1])} dumps, {len(found)} differences")
        print("".join(f"  {line}\n" for line in found), end="")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
