#!/usr/bin/env bash
# A shop behind HTTPS: builds Torus, starts torusd on a copy of examples/shop, torus-proxy as its ingress gateway and two
# versions of a backend, shows where requests go, edits the YAML while traffic flows, breaks it once, and measures.
# Everything it starts ends with it, on Ctrl-C as well.
#
#   DEMO_SECONDS  how long it measures (5)          DEMO_RATE  requests a second (2000)
#   DEMO_BIN      folder of built programs; nothing is built then
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds="${DEMO_SECONDS:-5}"
rate="${DEMO_RATE:-2000}"
http=127.0.0.1:8080 https=127.0.0.1:8443 admin=127.0.0.1:9901 xds=127.0.0.1:15010 operator=127.0.0.1:15014
v1=127.0.0.1:9001 v2=127.0.0.1:9002
pids=()
scratch=$(mktemp -d)
mesh="$scratch/shop"

finish() {
    status=$?
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for _ in $(seq 1 40); do
        local left=0
        for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && left=1; done
        [ "$left" -eq 1 ] || break
        sleep 0.05
    done
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$scratch"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
need_free() {
    local address=$1
    if (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null; then
        echo "port ${address##*:} is taken; see who has it: ss -ltnp 'sport = :${address##*:}'" >&2
        exit 1
    fi
}
# Waits for a command to succeed: wait_for WHAT PID LOG COMMAND...
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
# Requests as a browser sends them: the name leads to this machine, the certificate is verified.
shop() {
    curl --silent --show-error --max-time 20 --cacert "$scratch/shop.pem" --connect-to "shop.example:443:$https" "$@"
}
# Which version answers 200 requests, sent one after another on one connection.
split() { shop 'https://shop.example/[1-200]' | grep -oE '"server": *"v[0-9]"' | sort | uniq -c || true; }
# The weights of the split in the folder, for v1 and v2. Written beside and moved, as editors do.
weigh() {
    sed -e "s/^      weight: .*/      weight: @/" "$mesh/routes.yaml" |
        awk -v first="$1" -v second="$2" '/weight: @/ { sub("@", n++ ? second : first) } { print }' >"$scratch/draft"
    mv "$scratch/draft" "$mesh/routes.yaml"
}

[ -n "${DEMO_BIN:-}" ] || command -v cargo >/dev/null 2>&1 ||
    { echo "cargo is missing; install Rust first: https://rustup.rs" >&2; exit 1; }
scripts/install-test-tools.sh demo
for address in "$http" "$https" "$admin" "$xds" "$operator" "$v1" "$v2"; do need_free "$address"; done

if [ -z "${DEMO_BIN:-}" ]; then
    say "Building (release; the first time takes some minutes)"
    cargo build --release --locked -p torus-control -p torus-proxy -p torus-load --bins
fi
bin="${DEMO_BIN:-${CARGO_TARGET_DIR:-target}/release}"
cp -r examples/shop "$mesh"
# The development certificate vouches for itself.
sed -n '/BEGIN CERTIFICATE/,/END CERTIFICATE/ s/^ *//p' "$mesh/certificate.yaml" >"$scratch/shop.pem"

say "The mesh is a folder of Istio's YAML"
"$bin/torusctl" analyze "$mesh"

say "Starting torusd on it, two versions of the shop, and an ingress gateway that knows nothing but torusd"
"$bin/torusd" --config-folder "$mesh" 2>"$scratch/torusd" &
pids+=($!)
torusd=$!
wait_for "torusd" $! "$scratch/torusd" curl -sf "http://$operator/ready"
for version in v1 v2; do
    "$bin/torus-load" serve --listen "${!version}" --threads 1 --name "$version" >"$scratch/$version" 2>&1 &
    pids+=($!)
    wait_for "the shop's $version" $! "$scratch/$version" curl -sf "http://${!version}/fixed"
done
"$bin/torus-proxy" -c examples/shop-gateway.yaml --concurrency 1 >"$scratch/gateway" 2>&1 &
pids+=($!)
gateway=$!
wait_for "the gateway" "$gateway" "$scratch/gateway" shop -f https://shop.example/
"$bin/torusctl" proxy-status

say "Plaintext is sent on to HTTPS"
curl -si --max-time 5 -H 'host: shop.example' "http://$http/cart" | grep -iE '^(HTTP|location)'

say "Testers, who send x-canary: yes, get the new version; of everyone else 10 in 100"
printf '%7d requests of testers:' 20
shop -H 'x-canary: yes' 'https://shop.example/[1-20]' | grep -oE '"server": *"v[0-9]"' | sort | uniq -c
split

say "Why did that go there?"
"$bin/torusctl" why --listener-port 8443 GET https://shop.example/cart -H 'x-canary: yes' |
    sed "s|$scratch/||g"

say "An edit while it runs: 50 to 50"
weigh 50 50
"$bin/torusctl" wait
split

say "A broken edit is told with its place, and changes nothing"
weigh 50 lots
for _ in $(seq 1 100); do grep -q 'routes.yaml:' "$scratch/torusd" && break; sleep 0.05; done
grep 'routes.yaml:' "$scratch/torusd" | tail -n 1 | sed -e "s|$scratch/||g" -e 's/^[^ ]* *//'
split
weigh 90 10
"$bin/torusctl" wait

say "Measuring through HTTPS: $rate requests a second for $seconds s (everything on this machine)"
# 3: this machine is too busy for an exact figure; what was measured is shown all the same.
"$bin/torus-load" run "https://$https/fixed" --server-name shop.example --cacert "$scratch/shop.pem" -H 'host: shop.example' \
    --rate "$rate" --duration "${seconds}s" --connections 32 --watch-pid "$gateway" --quiet || [ $? -eq 3 ]
printf 'resident memory: torusd %s kB, gateway %s kB\n' \
    "$(awk '/VmRSS/ { print $2 }' "/proc/$torusd/status")" "$(awk '/VmRSS/ { print $2 }' "/proc/$gateway/status")"

say "Done. Everything it started ends now; docs/control-plane.md goes on from here."
