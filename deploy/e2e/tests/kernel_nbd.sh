# Runs in the guest: a cluster, a filesystem on kernel NBD, and the end of the process behind it, twice. Ends with 0 only when
# nothing was lost.
export TORUS_ETCD=http://127.0.0.1:2379
dmesg -n 4
mkdir -p /data /mnt/v /tmp/sums; mount -t tmpfs -o size=80% none /data

say() { echo "@ $(cut -d' ' -f1 /proc/uptime) $*"; }
fail() {
    say "FAILED: $*"
    tail -n 15 /data/*.log /var/lib/torus/attached/*/log 2>/dev/null
    dmesg | tail -n 40
    exit 1
}
# until_ok SECONDS COMMAND…: waits until the command succeeds.
until_ok() {
    deadline=$(($(cut -d. -f1 /proc/uptime) + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt $deadline ] || return 1
        usleep 100000
    done
}
ready() { wget -q -O /dev/null "http://127.0.0.1:$1/readyz"; }
# The process that serves volume $1.
keeper() { torusctl attached -o json | tr -d ' \n' | sed 's/},{/}\n{/g' | sed -n "s/.*\"name\":\"$1\".*\"pid\":\([0-9]*\).*/\1/p"; }
gone() { ! [ -e "/proc/$1" ]; }
# What the kernel says when a request failed, or a filesystem noticed.
complaints() { dmesg | grep -E "I/O error|Buffer I/O|EXT4-fs (error|warning)|XFS.*(rror|hutdown)|Remounting|hung task|blocked for more"; }
kill_keeper() {
    pid=$(keeper "$1")
    [ -n "$pid" ] || fail "nobody serves $1"
    kill -9 "$pid" && until_ok 10 gone "$pid" || fail "process $pid does not die"
}

# --- a cluster
etcd --data-dir /data/etcd --log-level error >/data/etcd.log 2>&1 &
until_ok 60 torusctl init --extent-size 8MiB || fail "no cluster"
for n in 1 2; do
    torus-agent --data-dir /data/disk-$n --size 256MiB --fill reserve --buffered-io --name agent-$n --domain node-$n \
        --auto-join --port 700$n --control-address 127.0.0.1:710$n --http-address 127.0.0.1:720$n >/data/agent-$n.log 2>&1 &
done
for n in 1 2; do until_ok 120 ready 720$n || fail "agent $n is not ready"; done
torusctl volume create db 128MiB || fail "no volume"
say "cluster is ready"

# --- a filesystem on it
torusctl attach db --mount /mnt/v || fail "cannot attach"
torusctl attached
device=$(sed -n 's# /mnt/v ext4.*##p' /proc/mounts)
case $device in /dev/nbd*) ;; *) fail "db is not mounted from a kernel NBD device, but from $device" ;; esac
say "mounted from $device"

# --- files, each synced before its checksum is written down; 48 names, used over and over
load() {
    n=0
    while ! [ -e /tmp/stop ]; do
        dd if=/dev/urandom of=/tmp/new bs=64k count=6 2>/dev/null
        name=f$((n % 48))
        sum=$(md5sum </tmp/new | cut -d' ' -f1)
        dd if=/tmp/new of=/mnt/v/$name bs=64k conv=fsync 2>/tmp/dd.err || { cat /tmp/dd.err >>/tmp/load.failed; break; }
        echo "$sum  /mnt/v/$name" >/tmp/sums/$name
        n=$((n + 1)); echo $n >/tmp/written
    done
}
beyond() { [ "$(cat /tmp/written)" -gt "$1" ]; }
echo 0 >/tmp/written
load & load=$!
until_ok 60 beyond 5 || fail "the load does not begin"

for round in 1 2; do
    before=$(cat /tmp/written)
    kill_keeper db
    say "round $round: owner killed after $before writes"
    torusctl attached | grep -q "^db .*waits\|its process is gone" || fail "it is not told that the device waits: $(torusctl attached)"
    # Requests under way, and new ones, have to wait for a moment.
    sleep 2
    torusctl attach db || fail "cannot take the device over"
    now=$(cat /tmp/written)
    say "round $round: taken over after $now writes"
    until_ok 60 beyond $((now + 5)) || fail "the load does not go on after the takeover"
    say "round $round: the load goes on, $(cat /tmp/written) writes"
done

touch /tmp/stop
wait $load
[ -e /tmp/load.failed ] && fail "a write failed: $(cat /tmp/load.failed)"
[ -z "$(complaints)" ] || fail "the kernel complains: $(complaints)"
say "load ended, no error"

# --- everything is there, also for who reads it from the volume
umount /mnt/v || fail "cannot unmount"
e2fsck -fn "$device" || fail "the filesystem is damaged"
mount -t ext4 "$device" /mnt/v || fail "cannot mount again"
cat /tmp/sums/* | md5sum -c >/tmp/checked || fail "wrong bytes: $(grep -v OK /tmp/checked)"
say "$(grep -c OK /tmp/checked) files are what was written"

# --- it grows where it is
blocks=$(stat -f -c %b /mnt/v)
torusctl volume resize db 160MiB || fail "cannot grow the volume"
larger() { [ "$(stat -f -c %b /mnt/v)" -gt "$blocks" ]; }
grown() { [ "$(cat /sys/block/${device#/dev/}/size)" = $((160 * 2048)) ]; }
until_ok 30 grown || fail "the device does not grow"
until_ok 60 larger || fail "the filesystem does not grow"
say "grown"

# --- and goes
# What made the filesystem grow may still have it open for a moment.
until_ok 30 torusctl detach db || fail "cannot detach"
grep -q " /mnt/v " /proc/mounts && fail "it is still mounted"
[ "$(cat /sys/block/${device#/dev/}/size)" = 0 ] || fail "$device is not free"
[ "$(torusctl volume info db -o json | grep -c '"closed"')" = 1 ] || fail "the volume is not closed"
say "detached"

# --- nobody comes back: what waits fails in the end
torusctl attach db --device nbd --dead-time 4 || fail "cannot attach with a wait of 4 s"
device=/dev/$(cd /sys/block && ls -d nbd*/pid | head -n 1 | cut -d/ -f1)
kill_keeper db
start=$(cut -d. -f1 /proc/uptime)
dd if="$device" of=/dev/null bs=4096 count=1 iflag=direct 2>/tmp/dd.err && fail "a read succeeded without anybody to answer it"
took=$(($(cut -d. -f1 /proc/uptime) - start))
grep -q "Input/output error" /tmp/dd.err || fail "another error: $(cat /tmp/dd.err)"
[ $took -ge 3 ] && [ $took -le 30 ] || fail "the read failed after $took s"
say "a read failed after $took s without anybody"
torusctl attach db || fail "cannot take the device over after that"
dd if="$device" of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null || fail "it does not read after the takeover"
kill_keeper db
torusctl detach db && fail "a device that waits was taken away"
torusctl detach db --force || fail "cannot give it up"
[ "$(cat /sys/block/${device#/dev/}/size)" = 0 ] || fail "$device is not free"
say "given up"
exit 0
