# The first process of a machine. $1: its name, $2: the folder with its own files of /etc, $3: the controllers of cgroup
# v1; then the folders that it shares with others.
set -e
hostname "$1"
etc=$2
controllers=$3
shift 3
mount --make-rprivate /
for file in hosts nsswitch.conf passwd group; do mount --bind "$etc/$file" "/etc/$file"; done
for hidden in /tmp /run /root /var/log /dev/shm /etc/munge /var/lib/munge /var/lib/glusterd; do
    if ! [ -d "$hidden" ]; then continue; fi
    own=$(mktemp -d -p /mnt)
    mount -t tmpfs -o mode=1777 own "$own"
    for shared; do
        case $shared/ in
        "$hidden"/*) mkdir -p "$own/${shared#"$hidden"}" && mount --bind "$shared" "$own/${shared#"$hidden"}" ;;
        esac
    done
    mount --rbind "$own" "$hidden"
    umount --lazy "$own"
    rmdir "$own"
done
chmod 755 /run /root /var/log
mount -t sysfs sysfs /sys
mount -t tmpfs cgroups /sys/fs/cgroup
for controller in $controllers; do
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
done
touch /run/ready
exec env --ignore-signal=CHLD sleep infinity # which has the kernel reap orphans: none stays a zombie for good
