#include "init.h"

#include <ftw.h>
#include <linux/random.h>
#include <net/if.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static void mount_or_die(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
	if (mount(source, target, type, flags, options))
		die(target);
}

/* mkdir -p */
static void make_path(const char *path)
{
	char prefix[PATH_MAX];
	snprintf(prefix, sizeof prefix, "%s", path);
	for (char *c = prefix + 1; *c; c++) {
		if (*c == '/') {
			*c = 0;
			mkdir(prefix, 0755);
			*c = '/';
		}
	}
	mkdir(prefix, 0755);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

/* ---- before the snapshot ---- */

/* Loads /modules/NNN.ko in the order of their numbers. */
static void load_modules(void)
{
	char path[64];
	for (int i = 0;; i++) {
		snprintf(path, sizeof path, "/modules/%03d.ko", i);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return;
		if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
			die(path);
		close(fd);
		unlink(path);
	}
}

/* Enables all of the kernel's controllers for the cgroups below the root. */
static void enable_controllers(void)
{
	char names[512] = "", one[64];
	int fd = open("/sys/fs/cgroup/cgroup.controllers", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, names, sizeof names - 1) < 0)
		die("cgroup.controllers");
	close(fd);
	for (char *name = strtok(names, " \n"); name; name = strtok(NULL, " \n")) {
		snprintf(one, sizeof one, "+%s", name);
		write_file("/sys/fs/cgroup/cgroup.subtree_control", one);
	}
}

static void loopback_up(void)
{
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo))
		die("lo");
	close(fd);
}

/* Opens port `number`, which the driver may not have added yet. */
int open_port(int number, int flags)
{
	char path[32];
	snprintf(path, sizeof path, "/dev/vport0p%d", number);
	for (int tries = 0; tries < 10000; tries++) {
		int fd = open(path, flags | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		usleep(1000);
	}
	die(path);
}

void boot(void)
{
	const char *folders[] = { "/proc", "/sys", "/dev", "/run", "/lower", "/scratch", "/root" };
	for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++)
		mkdir(folders[i], 0755);
	mount_or_die("dev", "/dev", "devtmpfs", 0, NULL);
	mount_or_die("proc", "/proc", "proc", 0, NULL);
	mount_or_die("sys", "/sys", "sysfs", 0, NULL);
	mount_or_die("run", "/run", "tmpfs", 0, "mode=755");
	mkdir("/dev/pts", 0755);
	mkdir("/dev/shm", 01777);
	mount_or_die("devpts", "/dev/pts", "devpts", 0, "mode=620,gid=5,ptmxmode=666");
	mount_or_die("shm", "/dev/shm", "tmpfs", 0, "mode=1777");
	if (symlink("/proc/self/fd", "/dev/fd") || symlink("fd/0", "/dev/stdin") || symlink("fd/1", "/dev/stdout") ||
	    symlink("fd/2", "/dev/stderr"))
		die("/dev/fd");
	load_modules();
	mount_or_die("scratch", "/scratch", "tmpfs", 0, "size=90%,mode=755");
	mkdir("/scratch/upper", 0755);
	mkdir("/scratch/work", 0755);
	mount_or_die("cgroup", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	enable_controllers();
	loopback_up();
	if (sethostname("kvm-host", 8))
		die("hostname");
	write_file("/proc/sys/net/ipv4/ip_forward", "1");
}

/* ---- after the snapshot ---- */

static void set_time_and_seed(void)
{
	struct timespec t = { 0 };
	char *dot = request.time ? strchr(request.time, '.') : NULL;
	if (dot) {
		t.tv_sec = atol(request.time);
		t.tv_nsec = atol(dot + 1);
		clock_settime(CLOCK_REALTIME, &t);
	}
	int random = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (random < 0 || !request.seed || write(random, request.seed, strlen(request.seed)) < 0 || ioctl(random, RNDRESEEDCRNG, 0))
		die("seed");
	close(random);
}

/* overlayfs copies a file to its upper layer, in memory, when it is opened for writing; a link, when its owner is set. */
static int copy_up(const char *path, const struct stat *status, int type, struct FTW *walk)
{
	(void)walk;
	if (type == FTW_SL)
		return lchown(path, status->st_uid, status->st_gid);
	if (type != FTW_F || !S_ISREG(status->st_mode))
		return 0;
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

static void mount_root(void)
{
	const char *nine = "trans=virtio,version=9p2000.L,msize=512000";
	char path[PATH_MAX], other[PATH_MAX], options[128];
	snprintf(options, sizeof options, "%s,cache=loose", nine);
	mount_or_die("root", "/lower", "9p", MS_RDONLY, options);
	mount_or_die("overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work");
	const char *moved[] = { "/dev", "/proc", "/sys", "/run" };
	for (int i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "/root%s", moved[i]);
		mkdir(path, 0755);
		mount_or_die(moved[i], path, NULL, MS_MOVE, NULL);
	}
	if (request.modules) {
		snprintf(path, sizeof path, "/root%s", request.modules);
		snprintf(other, sizeof other, "/root/usr/lib/modules%s", strrchr(request.modules, '/'));
		make_path(other);
		mount_or_die(path, other, NULL, MS_BIND, NULL);
	}
	/* Container engines create overlays here, and an overlay cannot be the upper layer of another one. */
	const char *engines[] = { "/var/lib/docker", "/var/lib/containerd", "/var/lib/containers" };
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "/scratch/engine%d", i);
		mkdir(path, 0711);
		snprintf(other, sizeof other, "/root%s", engines[i]);
		make_path(other);
		mount_or_die(path, other, NULL, MS_BIND, NULL);
	}
	for (int i = 0; i < request.out.count; i++) {
		char tag[16];
		snprintf(tag, sizeof tag, "out%d", i);
		snprintf(path, sizeof path, "/root%s", request.out.item[i]);
		make_path(path);
		snprintf(options, sizeof options, "%s,cache=mmap", nine);
		mount_or_die(tag, path, "9p", 0, options);
	}
	if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		die("change root");
	for (int i = 0; i < request.stage.count; i++)
		if (nftw(request.stage.item[i], copy_up, 64, FTW_PHYS))
			die(request.stage.item[i]);
}

void enter(void)
{
	set_time_and_seed();
	mount_root();
}
