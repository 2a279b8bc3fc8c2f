"""The table of cases. Every one runs in both variants unless it says otherwise, against torus-proxy and against Envoy."""

import resources as res
from steps import (
    acks, asks, closed, cut, down, drops, envoy_only, gets, nacks, not_open, on_one_connection, push, shows, silent, stat, still,
    torus_only, up, wait,
)

CASES = {}


def case(name, *steps, variants=("sotw", "delta"), why=None, short=False, **options):
    """`why` explains a step that is for one of the two programs; `options` go to the bootstrap."""
    assert name not in CASES, name
    CASES[name] = (steps, variants, why, short, options)


# Resources that need a port of the running case.
def static(name, backend="a", **more):
    return lambda case: res.static(name, case.backend(backend), **more)


def endpoints(name, *backends, **more):
    return lambda case: res.assignment(name, *[case.backend(it) for it in backends], **more)


def listener(name, routes, **more):
    return lambda case: res.listener(name, case.port(name), routes, **more)


def fixed(name, body, **more):
    return listener(name, res.inline(res.says(body)), **more)


def secure(name, secret, **more):
    return lambda case: res.tls_listener(name, case.port(name), res.inline(res.says("x")), secret, **more)


def tcp(name, cluster):
    return lambda case: res.tcp_listener(name, case.port(name), cluster)


# What most cases begin with: one listener that takes its routes from the table `r`, one EDS cluster `c`.
NO_CLUSTERS = (asks("cds"), push("cds"), acks("cds"))
ONE_CLUSTER = (
    asks("cds"), push("cds", {"c": res.eds("c")}),
    asks("eds", {"c"}), push("eds", {"c": endpoints("c", "a")}), acks("eds"), acks("cds"),
)
ONE_LISTENER = (
    asks("lds"), push("lds", {"l": listener("l", res.rds("r"))}),
    asks("rds", {"r"}), push("rds", {"r": res.table("r", res.to("c"))}), acks("rds"), acks("lds"),
)
SERVING = ONE_CLUSTER + ONE_LISTENER + (gets("l", 200, "a"),)
FIXED = NO_CLUSTERS + (asks("lds"), push("lds", {"l": fixed("l", "one")}), acks("lds"), gets("l", 200, "one"))

# -- requests -------------------------------------------------------------------------------------------------------------------

case("the first request of a type has no version, no nonce and no names",
     asks("cds", names=(), version="", first=True, initial={}), push("cds"), acks("cds"),
     asks("lds", names=(), version="", first=True, initial={}), short=True)
case("the first request says who asks",
     asks("cds", node=lambda it: it and it["id"] == "n1" and it["cluster"] == "c1" and it["metadata"]["team"] == "x"
          and it["locality"]["region"] == "r1" and it["user_agent_name"]),
     node={"id": "n1", "cluster": "c1", "metadata": {"team": "x"}, "locality": {"region": "r1"}}, short=True)
case("with set_node_on_first_message_only the node is said once a stream",
     asks("cds", node=lambda it: it is not None), push("cds"), asks("cds", node=lambda it: it is None),
     asks("lds", node=lambda it: it is None), push("lds"), asks("lds", node=lambda it: it is None), node_once=True)
case("the node is said again on a new stream",
     asks("cds", node=lambda it: it is not None), push("cds"), acks("cds"), asks("lds"), push("lds"), acks("lds"), cut(),
     asks("cds", node=lambda it: it is not None), node_once=True)
case("an acknowledgement has the nonce and the version of the answer",
     asks("cds"), push("cds", version="blue ü 7"), acks("cds"), silent("cds"), short=True)
case("two answers in a row are both acknowledged",
     asks("cds"), push("cds"), acks("cds"), push("cds", {"c": static("c")}), acks("cds"), push("cds", {"d": static("d")}), acks("cds"))
case("answers that come without waiting end in an acknowledgement of the last",
     asks("cds"), push("cds", {"c": static("c")}), push("cds", {"d": static("d")}), push("cds", {"e": static("e")}), acks("cds"),
     stat("cluster_manager.active_clusters", 4))
case("the same answer again is acknowledged and changes nothing",
     *FIXED, on_one_connection("k", "l", 200, "one"), push("lds", {"l": fixed("l", "one")}), acks("lds"),
     on_one_connection("k", "l", 200, "one"), stat("listener_manager.listener_modified", 0))
case("an answer of a type that nobody asked for is passed over",
     *FIXED, push("eds", {"x": endpoints("x", "a")}), silent("eds"), push("lds", {"l": fixed("l", "two")}), acks("lds"), gets("l", 200, "two"))
case("an answer of a type that does not exist is passed over",
     *FIXED, push("cds", url="type.googleapis.com/no.such.Type", item_url="type.googleapis.com/no.such.Type", keep=False),
     push("lds", {"l": fixed("l", "two")}), acks("lds"), gets("l", 200, "two"))

# -- names ----------------------------------------------------------------------------------------------------------------------

case("endpoints are asked for by the names of clusters",
     asks("cds"), push("cds", {"c": res.eds("c"), "d": res.eds("d", "service-d")}), asks("eds", {"c", "service-d"}), short=True)
case("a static cluster asks for no endpoints",
     asks("cds"), push("cds", {"c": static("c")}), acks("cds"), silent("eds"))
case("a new cluster adds its name, an old one takes its name away",
     *ONE_CLUSTER, push("cds", {"d": res.eds("d")}), asks("eds", {"c", "d"}, only=({"d"}, ())),
     push("eds", {"d": endpoints("d", "b")}), acks("eds"), acks("cds"),
     push("cds", remove=["c"]), acks("cds"), asks("eds", {"d"}, only=((), {"c"})))
case("two clusters may share a service name",
     asks("cds"), push("cds", {"c": res.eds("c", "s"), "d": res.eds("d", "s")}), asks("eds", {"s"}),
     push("eds", {"s": endpoints("s", "a")}), acks("eds"), acks("cds"), asks("lds"),
     push("lds", {"l": listener("l", res.inline(res.to("c"))), "m": listener("m", res.inline(res.to("d")))}), acks("lds"),
     gets("l", 200, "a"), gets("m", 200, "a"))
case("routes are asked for by the names in listeners",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": listener("l", res.rds("r")), "m": listener("m", res.rds("s"))}), asks("rds", {"r", "s"}), short=True)
case("two listeners may share a table",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": listener("l", res.rds("r")), "m": listener("m", res.rds("r"))}), asks("rds", {"r"}),
     push("rds", {"r": res.table("r", res.says("shared"))}), acks("rds"), gets("l", 200, "shared"), gets("m", 200, "shared"))
case("a resource that nobody asked for by name is passed over",
     *SERVING, push("rds", {"other": res.table("other", res.says("no"))}), acks("rds"), push("eds", {"other": endpoints("other", "b")}),
     acks("eds"), still("l", 200, "a"))
case("an answer with one of two names is taken, and the other one may come later",
     asks("cds"), push("cds", {"c": res.eds("c"), "d": res.eds("d")}), asks("eds", {"c", "d"}), push("eds", {"c": endpoints("c", "a")}), acks("eds"),
     push("eds", {"d": endpoints("d", "b")}), acks("eds"), asks("lds"), push("lds", {"l": listener("l", res.inline(res.to("d")))}), acks("lds"),
     gets("l", 200, "b"))

# -- refusals -------------------------------------------------------------------------------------------------------------------

BAD_CLUSTER = {"name": "bad", "type": "EDS", "connect_timeout": "1s"}
case("a refused first answer leaves the version empty",
     asks("cds"), push("cds", {"bad": BAD_CLUSTER}, keep=False), nacks("cds", "bad: "), push("cds"), acks("cds"), short=True)
case("a refused cluster is named, and the version stays that of the last good answer",
     *SERVING, push("cds", {"bad": BAD_CLUSTER}, keep=False), nacks("cds", "^bad: eds_cluster_config: is required"), still("l", 200, "a"), short=True)
case("what is good after a refusal is accepted",
     asks("cds"), push("cds", {"c": static("c")}), acks("cds"), push("cds", {"bad": BAD_CLUSTER}, keep=False), nacks("cds"),
     push("cds", {"d": static("d")}), acks("cds"), stat("cluster_manager.active_clusters", 3))
case("the good clusters of a refused answer are taken",
     asks("cds"), push("cds", {"bad": BAD_CLUSTER, "c": static("c")}, keep=False), nacks("cds", "bad: "),
     stat("cluster_manager.active_clusters", 2))
case("the good listeners of a refused answer are taken",
     *NO_CLUSTERS, asks("lds"), push("lds", {"bad": {"name": "bad"}, "l": fixed("l", "one")}, keep=False), nacks("lds", "bad: "),
     gets("l", 200, "one"))
case("the same name twice is refused",
     asks("cds"), push("cds", {"c": static("c")}, again=["c"], keep=False), nacks("cds", "c: .*twice"),
     torus_only(stat("cluster_manager.active_clusters", 1)), envoy_only(stat("cluster_manager.active_clusters", lambda count: count in (1, 2))), push("cds", {"c": static("c")}), acks("cds"), short=True,
     why="in SotW Envoy takes the first of the two; for torus-proxy nothing of such an answer is good, as for both in delta")
case("the same listener twice is refused",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": fixed("l", "one")}, again=["l"], keep=False), nacks("lds", "l: .*twice"), push("lds", {"l": fixed("l", "two")}), acks("lds"), gets("l", 200, "two"))
case("a resource of another type than its answer is refused",
     *SERVING, push("rds", {"r": res.table("r", res.says("x"))}, item_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"),
     nacks("rds", "r: has type"), still("l", 200, "a"), short=True)
case("a cluster of the wrong type URL is refused",
     asks("cds"), push("cds", {"c": static("c")}, item_url="type.googleapis.com/envoy.config.listener.v3.Listener", keep=False), nacks("cds", "c: has type"))
case("a truncated cluster is refused",
     asks("cds"), push("cds", {"c": static("c")}), acks("cds"), push("cds", {"t": b"\x0a\x01t\x22\x7f\x08"}, keep=False), nacks("cds", "^t: "),
     stat("cluster_manager.active_clusters", 2), short=True)
case("a truncated listener is refused",
     *FIXED, push("lds", {"t": b"\x0a\x01t\x12\xff\xff\x01"}, keep=False), nacks("lds", "^t: "), still("l", 200, "one"))
case("truncated endpoints are refused",
     *SERVING, push("eds", {"c": b"\x0a\x01c\x12\x55\x01"}), nacks("eds", "c: "), still("l", 200, "a"))
case("truncated routes are refused",
     *SERVING, push("rds", {"r": b"\x0a\x01r\x12\x55\x01"}), nacks("rds", "r: "), still("l", 200, "a"))
case("a bad regex in a route is refused",
     *SERVING, push("rds", {"r": res.table("r", res.says("x"), {"safe_regex": {"regex": "(unclosed"}})}), nacks("rds", "r: .*regex"), still("l", 200, "a"), short=True)
case("a virtual host without domains is refused",
     *SERVING, push("rds", {"r": res.table("r", res.says("x"), domains=())}), nacks("rds", "r: .*domains"), still("l", 200, "a"))
case("one domain in two virtual hosts is refused",
     *SERVING, push("rds", {"r": {"name": "r", "virtual_hosts": [
         {"name": "one", "domains": ["x.test"], "routes": []}, {"name": "two", "domains": ["x.test"], "routes": []}]}}),
     nacks("rds", "r: .*x.test"), still("l", 200, "a"))
case("a route without an action is refused",
     *SERVING, push("rds", {"r": res.table("r", {})}), nacks("rds", "r: "), still("l", 200, "a"))
case("an unknown filter is refused by its name",
     *FIXED, push("lds", {"x": lambda case: {"name": "x", "address": res.address(case.port("x")), "filter_chains": [{"filters": [
         {"name": "envoy.filters.network.no_such_thing", "typed_config": {"@type": res.TYPE + "google.protobuf.Duration", "value": "1s"}}]}]}},
         keep=False), nacks("lds", "x: filter_chains.0..filters.0..*google.protobuf.Duration"), still("l", 200, "one"))
case("a listener without an address is refused",
     *FIXED, push("lds", {"x": {"name": "x", "filter_chains": []}}, keep=False), nacks("lds", "x: .*address"), still("l", 200, "one"))
case("a listener on the address of another is refused",
     *FIXED, push("lds", {"x": lambda case: {**res.listener("x", case.port("l"), res.inline(res.says("x")))}}, keep=False),
     nacks("lds", "x: .*address"), still("l", 200, "one"))
case("a cluster with a bad number is refused",
     asks("cds"), push("cds", {"c": static("c", connect_timeout="-1s")}, keep=False), nacks("cds", "c: .*connect_timeout"))
case("endpoints with a priority beyond 128 are refused",
     *SERVING, push("eds", {"c": endpoints("c", "b", priority=200)}), nacks("eds", "c: .*priority"), still("l", 200, "a"))
case("twenty refusals in a row leave everything as it is",
     *SERVING, *[step for _ in range(20) for step in (push("rds", {"r": res.table("r", {})}), nacks("rds", "r: "))], still("l", 200, "a"),
     push("rds", {"r": res.table("r", res.says("good"))}), acks("rds"), gets("l", 200, "good"))
case("a refused answer is not refused again without being asked",
     *SERVING, push("rds", {"r": res.table("r", {})}), nacks("rds"), silent("rds"))

# -- presence and absence -------------------------------------------------------------------------------------------------------

case("a cluster that is left out or removed is gone",
     *SERVING, push("cds", {"d": static("d")}, remove=["c"]), acks("cds"), gets("l", 503), short=True)
case("an empty world removes every cluster",
     *SERVING, push("cds", remove=["c"]), acks("cds"), gets("l", 503), stat("cluster_manager.active_clusters", 1))
case("a listener that is left out or removed is closed",
     *FIXED, push("lds", {"m": fixed("m", "two")}), acks("lds"), gets("m", 200, "two"), push("lds", remove=["m"]), acks("lds"),
     closed("m"), still("l", 200, "one"), short=True)
case("an empty world removes every listener",
     *FIXED, push("lds", remove=["l"]), acks("lds"), closed("l"))
case("a removed listener may come back",
     *FIXED, push("lds", remove=["l"]), acks("lds"), closed("l"), push("lds", {"l": fixed("l", "back")}), acks("lds"), gets("l", 200, "back"))
case("a removed cluster may come back",
     *SERVING, push("cds", remove=["c"]), acks("cds"), gets("l", 503), push("cds", {"c": res.eds("c")}), asks("eds", {"c"}),
     push("eds", {"c": endpoints("c", "b")}), acks("eds"), gets("l", 200, "b"))
case("endpoints that are left out stay",
     *SERVING, push("cds", {"d": res.eds("d")}), asks("eds", {"c", "d"}), push("eds", {"d": endpoints("d", "b")}), acks("eds"), acks("cds"), still("l", 200, "a"))
case("an empty answer of endpoints removes none",
     *SERVING, push("eds"), acks("eds"), still("l", 200, "a"))
case("an empty answer of routes removes none",
     *SERVING, push("rds"), acks("rds"), still("l", 200, "a"))
case("a cluster's endpoints may be none",
     *SERVING, push("eds", {"c": res.assignment("c")}), acks("eds"), gets("l", 503), push("eds", {"c": endpoints("c", "b")}), acks("eds"), gets("l", 200, "b"))
case("removed endpoints stay while their cluster asks for them",
     *SERVING, push("eds", remove=["c"]), acks("eds"), still("l", 200, "a"), variants=("delta",))
case("removed routes stay while their listener asks for them",
     *SERVING, push("rds", remove=["r"]), acks("rds"), still("l", 200, "a"), variants=("delta",))
case("the removal of what was never there is acknowledged",
     *FIXED, push("cds", remove=["nothing"]), acks("cds"), push("lds", remove=["nothing"]), acks("lds"), still("l", 200, "one"), variants=("delta",))
case("a name that is both there and removed is refused",
     asks("cds"), push("cds", {"c": static("c")}, remove=["c"], keep=False), nacks("cds", "c: is both"), variants=("delta",))
case("a cluster of the bootstrap is not replaced",
     asks("cds"), push("cds", {"own": static("own", "b")}), acks("cds"), asks("lds"), push("lds", {"l": listener("l", res.inline(res.to("own")))}),
     acks("lds"), gets("l", 200, "a"), push("cds", remove=["own"]), acks("cds"), still("l", 200, "a"), clusters=lambda case: [res.static("own", case.backend("a"))])

# -- going live -----------------------------------------------------------------------------------------------------------------

case("a listener waits for its routes",
     *FIXED, push("lds", {"m": listener("m", res.rds("r"))}), asks("rds", {"r"}), not_open("m"), push("rds", {"r": res.table("r", res.says("now"))}),
     acks("rds"), gets("m", 200, "now"), short=True)
case("a listener serves as it did until its new routes are there",
     *SERVING, push("lds", {"l": listener("l", res.rds("s"))}), asks("rds", {"r", "s"}), still("l", 200, "a"),
     push("rds", {"s": res.table("s", res.says("new"))}), acks("rds"), gets("l", 200, "new"))
case("a changed cluster serves as it did until its endpoints are there",
     *SERVING, push("cds", {"c": res.eds("c", "other")}), asks("eds", {"c", "other"}), still("l", 200, "a"),
     push("eds", {"other": endpoints("other", "b")}), acks("eds"), gets("l", 200, "b")) 
case("a changed cluster with the same endpoints goes on",
     *SERVING, push("cds", {"c": res.eds("c", connect_timeout="2s")}), push("eds", {"c": endpoints("c", "a")}), acks("eds"), acks("cds"), still("l", 200, "a"))
case("new endpoints are live",
     *SERVING, push("eds", {"c": endpoints("c", "b")}), acks("eds"), gets("l", 200, "b"), short=True)
case("new routes are live on connections that are open",
     *SERVING, on_one_connection("k", "l", 200, "a"), push("rds", {"r": res.table("r", res.says("new"))}), acks("rds"),
     gets("l", 200, "new"), on_one_connection("k", "l", 200, "new"), short=True)
case("a changed listener is live on new connections",
     *FIXED, push("lds", {"l": fixed("l", "two")}), acks("lds"), gets("l", 200, "two"))
case("a listener may move to another port",
     *FIXED, push("lds", {"l": lambda case: res.listener("l", case.port("moved"), res.inline(res.says("moved")))}), acks("lds"),
     gets("moved", 200, "moved"), closed("l"))
case("a route to a cluster that is not there answers 503 until it is",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": listener("l", res.rds("r"))}), asks("rds", {"r"}), push("rds", {"r": res.table("r", res.to("late"))}),
     acks("rds"), gets("l", 503), push("cds", {"late": static("late")}), acks("cds"), gets("l", 200, "a"), short=True)
case("a weighted route to a cluster that is not there is accepted",
     *SERVING, push("rds", {"r": res.table("r", {"route": {"weighted_clusters": {"clusters": [{"name": "no", "weight": 1}]}}})}), acks("rds"), gets("l", 503))
case("a TCP proxy to a cluster that is not there closes connections until it is",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": tcp("l", "late")}), acks("lds"), drops("l"), push("cds", {"late": static("late")}), acks("cds"), gets("l", 200, "a"))
case("the other way round: clusters that nobody routes to",
     asks("cds"), push("cds", {name: static(name) for name in ("c", "d", "e")}), acks("cds"), stat("cluster_manager.active_clusters", 4))
case("endpoints come in one answer for many clusters",
     asks("cds"), push("cds", {f"c{i}": res.eds(f"c{i}") for i in range(30)}), asks("eds", {f"c{i}" for i in range(30)}),
     push("eds", {f"c{i}": endpoints(f"c{i}", "a") for i in range(30)}), acks("eds"), acks("cds"), stat("cluster_manager.active_clusters", 31))
case("an answer of more than four megabytes is taken",
     *SERVING, push("rds", {"r": {"name": "r", "virtual_hosts": [
         {"name": f"host-{i}", "domains": [f"host-{i}-{'x' * 180}.test"], "routes": [res.route(res.says("y" * 150))]} for i in range(12000)]
         + res.table("r", res.says("large"))["virtual_hosts"]}}), acks("rds"), gets("l", 200, "large"))

# -- time -----------------------------------------------------------------------------------------------------------------------

case("routes that do not come in time are given up",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": listener("l", res.rds("r", "0.5s"))}), asks("rds", {"r"}), gets("l", 404), short=True)
case("routes that come after that are taken",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": listener("l", res.rds("r", "0.3s"))}), asks("rds", {"r"}), gets("l", 404),
     push("rds", {"r": res.table("r", res.says("late"))}), acks("rds"), gets("l", 200, "late"))
case("endpoints that do not come in time are given up, and may come later",
     asks("cds"), push("cds", {"c": res.eds("c", fetch_timeout="0.3s")}), asks("eds", {"c"}), acks("cds"), asks("lds"),
     push("lds", {"l": listener("l", res.inline(res.to("c")))}), acks("lds"), gets("l", 503), push("eds", {"c": endpoints("c", "a")}), acks("eds"), gets("l", 200, "a"))
case("clusters that do not come in time do not hold up listeners",
     asks("cds"), asks("lds"), push("lds", {"l": fixed("l", "one")}), acks("lds"), gets("l", 200, "one"), fetch_timeout="0.5s")
case("without a timeout routes are waited for",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": listener("l", res.rds("r", "0s"))}), asks("rds", {"r"}), not_open("l", 1.0))
case("a cluster's time to live ends it",
     asks("cds"), push("cds", {"c": static("c")}, ttl=2), acks("cds"), asks("lds"), push("lds", {"l": listener("l", res.inline(res.to("c")))}), acks("lds"),
     gets("l", 200, "a"), gets("l", 503), short=True)
case("a listener's time to live ends it",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": fixed("l", "one")}, ttl=1.5), acks("lds"), gets("l", 200, "one"), closed("l"))
case("a heartbeat gives a cluster more time",
     asks("cds"), push("cds", {"c": static("c")}, ttl=2, version="t"), acks("cds"), asks("lds"), push("lds", {"l": listener("l", res.inline(res.to("c")))}), acks("lds"), gets("l", 200, "a"), *[step for _ in range(3) for step in (wait(1), push("cds", heartbeat=["c"], ttl=2, version="t"), acks("cds"))],
     still("l", 200, "a"), gets("l", 503), variants=("delta",))
case("a resource in an envelope is the resource",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": fixed("l", "one")}, wrap=True), acks("lds"), gets("l", 200, "one"))

# -- streams --------------------------------------------------------------------------------------------------------------------

case("a new stream begins with the versions that were accepted",
     *SERVING, cut(), asks("cds", names=(), first=True), asks("eds", {"c"}, first=True), asks("lds", names=(), first=True), asks("rds", {"r"}, first=True),
     still("l", 200, "a"), short=True)
case("a new stream states the last good version, not the refused one",
     asks("cds"), push("cds", {"c": static("c")}, version="good"), acks("cds"), push("cds", {"bad": BAD_CLUSTER}, keep=False, version="bad"), nacks("cds"),
     cut(), asks("cds", version="good", first=True, initial={"c": "good"}))
case("a new stream states the versions of all that is there",
     asks("cds"), push("cds", {"c": static("c")}, version="one"), acks("cds"), push("cds", {"d": static("d")}, version="two"), acks("cds"),
     cut(), asks("cds", version="two", first=True, initial={"c": "one", "d": "two"}), short=True)
case("what was removed is not stated on a new stream",
     asks("cds"), push("cds", {"c": static("c"), "d": static("d")}, version="one"), acks("cds"), push("cds", remove=["c"], version="two"), acks("cds"),
     cut(), asks("cds", version="two", first=True, initial={"d": "one"}))
case("a change on a new stream is live",
     *SERVING, cut(), asks("rds", {"r"}), push("rds", {"r": res.table("r", res.says("new"))}), acks("rds"), gets("l", 200, "new"))
case("everything stays while the control plane is gone, and follows when it is back",
     *SERVING, down(), still("l", 200, "a"), up(), asks("rds", {"r"}), push("rds", {"r": res.table("r", res.says("back"))}), acks("rds"), gets("l", 200, "back"), short=True)
case("five streams in a row end",
     *SERVING, *[step for _ in range(5) for step in (cut(), asks("cds", names=(), first=True))], still("l", 200, "a"))
case("the state of the connection is a stat",
     *FIXED, stat("control_plane.connected_state", 1), down(), stat("control_plane.connected_state", 0), up(), asks("lds"), stat("control_plane.connected_state", 1))

# -- secrets --------------------------------------------------------------------------------------------------------------------

SECURE = NO_CLUSTERS + (asks("lds"), push("lds", {"l": secure("l", "s")}), asks("sds", {"s"}))
SHOWN = SECURE + (push("sds", {"s": res.certificate("s", 1)}), acks("sds"), shows("l", 1))

case("a listener waits for its secret", *SECURE, not_open("l"), push("sds", {"s": res.certificate("s", 1)}), acks("sds"), shows("l", 1), short=True)
case("a new certificate is shown by new handshakes",
     *SHOWN, push("sds", {"s": res.certificate("s", 2)}), acks("sds"), shows("l", 2), stat("listener_manager.listener_modified", 0), short=True)
case("two listeners may share a secret",
     *SHOWN, push("lds", {"l": secure("l", "s"), "m": secure("m", "s")}), acks("lds"), shows("m", 1),
     push("sds", {"s": res.certificate("s", 2)}), acks("sds"), shows("l", 2), shows("m", 2))
case("a certificate with the key of another is refused and the last good one is shown",
     *SHOWN, push("sds", {"s": res.certificate("s", 2, key=3)}, keep=False), nacks("sds"), shows("l", 1),
     push("sds", {"s": res.certificate("s", 2)}), acks("sds"), shows("l", 2), short=True)
case("a certificate that is none is refused and the last good one is shown",
     *SHOWN, push("sds", {"s": {"name": "s", "tls_certificate": {"certificate_chain": {"inline_string": "x"}, "private_key": {"inline_string": "y"}}}}, keep=False),
     nacks("sds"), shows("l", 1))
case("a removed secret is shown on", *SHOWN, push("sds", remove=["s"]), acks("sds"), shows("l", 1), variants=("delta",))
case("another secret of the same listener is asked for",
     *SHOWN, push("lds", {"l": secure("l", "t")}), asks("sds", {"s", "t"}), shows("l", 1),
     push("sds", {"t": res.certificate("t", 2)}), acks("sds"), shows("l", 2))
case("a listener whose secret does not come in time drops connections",
     *NO_CLUSTERS, asks("lds"), push("lds", {"l": secure("l", "s", fetch_timeout="0.5s")}), asks("sds", {"s"}), drops("l"),
     push("sds", {"s": res.certificate("s", 1)}), acks("sds"), shows("l", 1))
