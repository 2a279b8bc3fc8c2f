# Runs a TuneD daemon of its own on PROFILE, in the network and mount namespace that it is started in, and writes what
# `tuned-adm verify` and `torus-tune check` say: while all is as the profile wants it, and after KEY became VALUE.
# Arguments: folder for the results, the profile, torus-tune, settings to check (comma separated), KEY, VALUE.
set -eu
results=$1 profile=$2 program=$3 settings=$4 key=$5 value=$6

# Nothing of this machine's TuneD is read or written: its folders are covered for this mount namespace.
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/tuned /run/etc/torus /run/log
cp "$profile" /run/etc/torus/tuned.conf
# Values of the machine's sysctl.d would reach beyond the network namespace.
printf 'daemon = 1\nreapply_sysctl = 0\n' >/run/etc/tuned-main.conf
mount --bind /run/etc /etc/tuned
mkdir -p /var/log/tuned && mount --bind /run/log /var/log/tuned
cat >/run/dbus.conf <<'BUS'
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
BUS
bus= daemon=
finish() {
    for process in $daemon $bus; do kill "$process" 2>/dev/null || true; done
    for process in $daemon $bus; do wait "$process" 2>/dev/null || true; done
}
trap finish EXIT

# wait_for WHAT COMMAND...: until the command succeeds, for 20 s.
wait_for() {
    what=$1
    shift
    for _ in $(seq 200); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    echo "$what did not come" >&2
    exit 1
}
dbus-daemon --config-file=/run/dbus.conf --nofork 2>/run/dbus.log &
bus=$!
wait_for "the message bus" test -S /run/dbus/system_bus_socket
tuned --pid /run/tuned/tuned.pid --log /run/log/tuned.log --profile torus >/dev/null 2>&1 &
daemon=$!
wait_for "the profile" sh -c 'tuned-adm verify 2>/dev/null | grep -q "Verfication\|Verification"'

# judge NAME: the exit code and the words of both.
judge() {
    code=0
    tuned-adm verify >"$results/$1.tuned" 2>/dev/null || code=$?
    echo "$code" >"$results/$1.tuned.code"
    code=0
    "$program" check --only "$settings" --state-dir "$results/state" -o json >"$results/$1.torus" || code=$?
    echo "$code" >"$results/$1.torus.code"
}
judge as-wanted
sysctl -qw "$key=$value"
judge one-changed
cp /run/log/tuned.log "$results/tuned.log"
