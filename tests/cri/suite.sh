#!/bin/bash
# suite.sh PROGRAMS OUT [WORDS]: runs critest with containerd and runc, and with containerd and $VMM_PROGRAM, in the emulated KVM
# host. Each run has a containerd of its own. PROGRAMS has critest, its images (*.tar) and images.yaml. The reports go to
# OUT/runc.json and OUT/vmm.json. With WORDS only tests run whose names contain them.
set -euo pipefail
programs=$1 out=$2 words=${3-}
seconds=2700
work=/mnt/critest
mkdir -p "$work" /etc/cni/net.d
mount -t tmpfs critest "$work"
export PATH=$PATH:/usr/sbin:/sbin

# Tests that need a registry, or a security module that the host does not have; and measurements.
skip='Image Manager|AppArmor|SELinux|benchmark'

cat > /etc/cni/net.d/10-critest.conflist <<'END'
{
  "cniVersion": "0.4.0",
  "name": "critest",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END

for runtime in runc vmm; do
    here=$work/$runtime
    mkdir "$here"
    cat > "$here/config.toml" <<END
version = 2
root = "$here/lib"
state = "$here/run"
[grpc]
  address = "$here/socket"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/local/pause:1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vmm]
    runtime_type = "io.containerd.runc.v2"
    pod_annotations = ["vmm.*"]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vmm.options]
      BinaryName = "$VMM_PROGRAM"
END
    # Machines with several vCPUs are slow in the emulated host.
    VMM_MAX_CPUS=1 containerd --config "$here/config.toml" > "$out/$runtime.containerd.log" 2>&1 &
    daemon=$!
    until ctr -a "$here/socket" version > /dev/null 2>&1; do
        kill -0 $daemon
        sleep 0.2
    done
    for image in "$programs"/*.tar; do
        ctr -a "$here/socket" -n k8s.io images import "$image" > /dev/null
    done
    code=0
    timeout -k 5 $seconds "$programs/critest" -runtime-endpoint "unix://$here/socket" -runtime-handler $runtime \
        -test-images-file "$programs/images.yaml" -ginkgo.no-color -ginkgo.v ${words:+-ginkgo.focus "$words"} \
        -ginkgo.skip "$skip" -ginkgo.json-report "$out/$runtime.json" > "$out/$runtime.log" 2>&1 < /dev/null || code=$?
    echo "critest with $runtime: exit $code, $SECONDS s"
    kill $daemon
    wait $daemon || true
done
