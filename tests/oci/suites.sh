#!/bin/bash
# suites.sh OUT YOUKI RUNTIME_TOOLS TEST...: runs tests of the two public suites with runc and with $VMM_PROGRAM in turn.
#
# A TEST is contest/GROUP or runtime-tools/PROGRAM. What each said goes to OUT/TEST.runc and OUT/TEST.vmm, its exit code last.
# A test has a pid namespace of its own, so that nothing which it leaves running meets the next one.
set -euo pipefail
out=$1 youki=$2 tools=$3
shift 3
# One of contest's machines has a twentieth of a CPU, in an emulated host.
seconds=300
work=$(mktemp -d "${TMPDIR:-/tmp}/suites.XXXXXX")
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work/tmp
chmod 755 "$work"
mkdir -p "$TMPDIR" "$work/bin"

# Two habits of contest's are seen to here, for both runtimes. It lets `create` run on its own and comes with `start` a second
# later, when a slow machine may not be there yet: of the two, in one root, the second waits for the first. And it does not look
# at exit codes, but for the word "error".
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
        # contest leaves out what it knows of runc.
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
