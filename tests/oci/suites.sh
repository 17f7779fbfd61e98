#!/bin/bash
# suites.sh OUT YOUKI RUNTIME_TOOLS TEST...: runs tests of the two public suites with runc and with $VMM_PROGRAM in
# turn.
#
# A TEST is contest/GROUP or runtime-tools/PROGRAM. Its output goes to OUT/TEST.runc and OUT/TEST.vmm, with the exit
# code at the end. Each test has a PID namespace, so that processes that it leaves running do not affect the next test.
set -euo pipefail
out=$1 youki=$2 tools=$3
shift 3
# A machine of contest has a twentieth of a CPU of the emulated host.
seconds=300
work=$(mktemp -d "${TMPDIR:-/tmp}/suites.XXXXXX")
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work/tmp
chmod 755 "$work"
mkdir -p "$TMPDIR" "$work/bin"

# Wrappers for both runtimes adapt them to contest. It runs `start` one second after it has begun `create`, which may
# take longer, so `start` waits for a `create` with the same root. It ignores exit codes and looks for the word "error"
# instead.
for runtime in runc vmm; do
    program=$(type -P runc)
    [ $runtime = runc ] || program=$VMM_PROGRAM
    cat > "$work/bin/$runtime" <<END
#!/bin/bash
case "\$1 \${3-}" in
"--root create") exec {lock}>>"\$2.lock"; flock \$lock; "$program" "\$@" {lock}>&- ;;
"--root start") flock "\$2.lock" true; "$program" "\$@" ;;
--root*) "$program" "\$@" ;;
*) exec "$program" "\$@" ;;
esac
code=\$?
[ \$code = 0 ] || echo "error: exit code \$code" >&2
exit \$code
END
    chmod +x "$work/bin/$runtime"
done

if [ -n "$youki" ]; then
    cp "$youki/contest" "$youki/runtimetest" "$youki/bundle.tar.gz" "$work"
fi
if [ -n "$tools" ]; then
    mkdir "$work/tools"
    cp "$tools/runtimetest" "$tools/rootfs-amd64.tar.gz" "$work/tools"
fi

for test in "$@"; do
    suite=${test%%/*} name=${test#*/}
    mkdir -p "$out/$suite"
    for runtime in runc vmm; do
        # contest skips tests that runc is known to fail.
        export RUNTIME_KIND=$runtime
        if [ "$suite" = contest ]; then
            command=("$work/contest" run --runtime "$work/bin/$runtime" --runtimetest "$work/runtimetest" -t "$name")
            cd "$work"
        else
            cp "$tools/$name" "$work/test"
            command=(env RUNTIME="$work/bin/$runtime" "$work/test")
            cd "$work/tools"
        fi
        code=0
        begin=$SECONDS
        timeout -k 5 $seconds unshare --pid --fork --kill-child --mount-proc "${command[@]}" \
            > "$work/said" 2>&1 < /dev/null || code=$?
        { cat "$work/said"; echo; echo "# exit $code"; } > "$out/$test.$runtime"
        echo "$test $runtime: exit $code, $((SECONDS - begin)) s"
    done
done
