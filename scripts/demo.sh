#!/usr/bin/env bash
# Builds Torus, starts a backend and the gateway of examples/gateway.yaml in front of it, shows requests and answers, and
# measures for ten seconds. Everything it starts ends with it, on Ctrl-C as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

gateway=127.0.0.1:10000
admin=127.0.0.1:9901
backend=127.0.0.1:8080
seconds="${DEMO_SECONDS:-10}"
connections="${DEMO_CONNECTIONS:-64}"
pids=()
logs=$(mktemp -d)

finish() {
    status=$?
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$logs"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() {
    local words='$ curl' word
    for word in "$@"; do
        case "$word" in *[!A-Za-z0-9:/.=_-]*) words+=" '${word//$'\n'/\\n}'" ;; *) words+=" $word" ;; esac
    done
    printf '%s\n' "$words"
    curl --silent --show-error --max-time 5 "$@"
    printf '\n'
}
need_free() {
    local address=$1
    if (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null; then
        echo "port ${address##*:} is taken; see who has it: ss -ltnp 'sport = :${address##*:}'" >&2
        exit 1
    fi
}
wait_for() {
    local what=$1 pid=$2 log=$3
    shift 3
    for _ in $(seq 1 200); do
        "$@" >/dev/null 2>&1 && return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    echo "$what did not start:" >&2
    tail -n 20 "$log" >&2
    exit 1
}

command -v cargo >/dev/null 2>&1 || { echo "cargo is missing; install Rust first: https://rustup.rs" >&2; exit 1; }
scripts/install-test-tools.sh demo
for address in "$gateway" "$admin" "$backend"; do need_free "$address"; done

say "Building (release; the first time takes a few minutes)"
cargo build --release --locked --bin torus-proxy --bin torus-load
target="${CARGO_TARGET_DIR:-target}/release"

say "Starting a backend on $backend and the gateway on $gateway"
"$target/torus-load" serve --listen "$backend" --threads 1 --name backend >"$logs/backend" 2>&1 &
pids+=($!)
wait_for "the backend" "${pids[0]}" "$logs/backend" curl -sf "http://$backend/fixed"
"$target/torus-proxy" -c examples/gateway.yaml --concurrency 1 --file-flush-interval-msec 50 >"$logs/gateway" 2>"$logs/gateway.err" &
pids+=($!)
wait_for "the gateway" "${pids[1]}" "$logs/gateway.err" curl -sf "http://$admin/ready"
# The gateway says itself which way it moves bytes; io_uring is the default where the kernel allows it.
curl -s "http://$admin/server_info" | grep -iE '"(version|driver|io)[a-z_]*":' | head -n 4 || true

say "Through the gateway to the backend, which answers what it received"
show -i "http://$gateway/anything?color=blue" -H 'x-hello: world'
say "Answered by the gateway itself"
show -i "http://$gateway/hello"
say "A backend that fails: its answer, and the time it took"
show -o /dev/null -w 'status %{http_code} after %{time_total} s\n' "http://$gateway/?status=503&delay_ms=20"
say "A request that could be read in two ways is refused, not repaired"
printf 'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n' |
    timeout 5 bash -c "exec 3<>/dev/tcp/${gateway%:*}/${gateway##*:}; cat >&3; head -n 1 <&3"

say "What the gateway logged and counted"
sleep 0.2
tail -n 4 "$logs/gateway"
curl -s --globoff "http://$admin/stats?usedonly&filter=(up|down)stream_rq_[245]xx$" | grep -v admin

say "Measuring: $connections connections for $seconds s, 1 KiB replies (wrk, everything on this machine)"
wrk --threads 1 --connections "$connections" --duration "${seconds}s" --latency "http://$gateway/fixed" >"$logs/wrk"
grep -E '50%|90%|99%|requests in|Requests/sec|errors|Non-2xx' "$logs/wrk"
printf '  resident memory of the gateway: %s kB\n' "$(awk '/VmRSS/ { print $2 }' "/proc/${pids[1]}/status")"

say "Done. Everything it started ends now; see README.md for what to do next."
