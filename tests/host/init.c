/* PID 1 of the emulated KVM host: the only program in its initramfs.
 *
 * It boots the machine (`boot`), says `ready` on port 1 and waits for a request. The snapshot is taken while it waits, so what
 * follows is what every run does: read the request, put the outer machine's root file system under a tmpfs overlay, run the
 * command, carry its streams, report how it ended. Nothing here ever ends the machine: the outer side does, once it has every byte.
 *
 * Ports (virtio-serial, /dev/vport0pN):  1 control, 2 stdout, 3 stderr, 4 stdin.
 * Control, inwards:   records `KEY VALUE\0`, ended by an empty record (keys: see `struct request`).
 * Control, outwards:  lines. `ready`; an empty line once a second (the heartbeat); `fail TEXT`;
 *                     `exit STATUS STDOUT_BYTES STDERR_BYTES MOUNT_US COMMAND_US SYNC_US`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/random.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REQUEST_MAX (4 << 20) /* bytes; Linux itself takes no more than 6 MiB of arguments and environment */
#define LIST_MAX 65536        /* entries of one request list */
#define CHUNK 65536           /* bytes carried at a time, a pipe's capacity */
#define BEAT_US 1000000

static int control = -1;

static long now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Sends one line to the outer side. The ports are opened non-blocking everywhere: a blocking write to a virtio port spins in
 * the kernel with interrupts off until the other side has taken it. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int length = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (length > (int)sizeof line - 1)
		length = sizeof line - 1;
	for (int done = 0; done < length;) {
		ssize_t n = write(control, line + done, length - done);
		if (n > 0) {
			done += n;
		} else if (errno == EAGAIN) {
			struct pollfd p = { control, POLLOUT, 0 };
			poll(&p, 1, -1);
		} else if (errno != EINTR) {
			return;
		}
	}
}

/* Reports that `what` failed with errno, and waits to be ended. Before the control port is there, the report goes to the kernel's log. */
static void die(const char *what)
{
	const char *why = strerror(errno);
	if (control < 0)
		control = open("/dev/kmsg", O_WRONLY);
	say("fail %s: %s\n", what, why);
	for (;;)
		pause();
}

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

/* ---- up to the snapshot ---- */

/* Loads /modules/NNN-NAME.ko in order of their numbers; a module that does not load is the outer side's to notice in the log. */
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

/* Every controller that the kernel has is handed to the cgroups below the root. */
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

/* Opens port `number`; the driver adds ports in its own time. */
static int open_port(int number, int flags)
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
	return -1;
}

static void boot(void)
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

/* ---- the request ---- */

struct list {
	char *item[LIST_MAX];
	int count;
};

static struct request {
	char *time;               /* seconds.nanoseconds since 1970 */
	char *seed;               /* any text, stirred into the kernel's random numbers */
	char *folder;             /* working directory of the command */
	char *modules;            /* folder of this kernel's modules, on the outer machine; its last part is the release */
	char *stdin_;             /* present: port 4 feeds standard input, else it is /dev/null */
	struct list out;          /* folders of the outer machine shared for writing; entry N has the 9p tag `outN` */
	struct list stage;        /* files and folders to copy into memory first */
	struct list arg, env;
} request;

static void take_record(char *record)
{
	char *value = strchr(record, ' ');
	if (!value)
		return;
	*value++ = 0;
	struct { const char *key; char **one; struct list *many; } keys[] = {
		{ "time", &request.time, NULL }, { "seed", &request.seed, NULL }, { "folder", &request.folder, NULL },
		{ "modules", &request.modules, NULL }, { "stdin", &request.stdin_, NULL }, { "out", NULL, &request.out },
		{ "stage", NULL, &request.stage }, { "arg", NULL, &request.arg }, { "env", NULL, &request.env },
	};
	for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
		if (strcmp(record, keys[i].key))
			continue;
		if (keys[i].one)
			*keys[i].one = value;
		else if (keys[i].many->count < LIST_MAX - 1)
			keys[i].many->item[keys[i].many->count++] = value;
		return;
	}
}

static void read_request(void)
{
	static char buffer[REQUEST_MAX];
	size_t length = 0, record = 0;
	for (;;) {
		ssize_t n = read(control, buffer + length, sizeof buffer - length);
		if (n <= 0) { /* 0: the outer side is not there yet */
			struct pollfd p = { control, POLLIN, 0 };
			poll(&p, 1, n ? -1 : 10);
			continue;
		}
		length += n;
		char *end;
		while ((end = memchr(buffer + record, 0, length - record))) {
			if (end == buffer + record)
				return;
			take_record(buffer + record);
			record = end + 1 - buffer;
		}
		if (length == sizeof buffer) {
			errno = E2BIG;
			die("request");
		}
	}
}

/* ---- the root file system ---- */

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

/* Opening for writing is what makes overlayfs copy a file into its upper layer, which is memory. */
static int copy_up(const char *path, const struct stat *status, int type, struct FTW *walk)
{
	(void)walk;
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
	/* Container engines put overlays into these; an overlay cannot be the upper layer of another. */
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

/* ---- the command ---- */

/* One direction of bytes: from -> buffer -> to. Both are non-blocking; -1 is closed. */
struct stream {
	int from, to;
	size_t start, length;
	unsigned long total; /* bytes written to `to` */
	char buffer[CHUNK];
};

static void step(struct stream *s, int drain)
{
	while (s->from >= 0 || s->length) {
		if (!s->length) {
			ssize_t n = read(s->from, s->buffer, CHUNK);
			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0 && errno == EAGAIN && !drain)
				return;
			if (n <= 0) {
				close(s->from);
				s->from = -1;
				return;
			}
			s->start = 0;
			s->length = n;
		}
		ssize_t n = write(s->to, s->buffer + s->start, s->length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) { /* the command closed its standard input */
			s->length = 0;
			close(s->from);
			s->from = -1;
			return;
		}
		s->start += n;
		s->length -= n;
		s->total += n;
	}
}

/* The descriptor that holds `s` up, for poll. */
static struct pollfd waits_for(const struct stream *s)
{
	if (s->length)
		return (struct pollfd){ s->to, POLLOUT, 0 };
	return (struct pollfd){ s->from, POLLIN, 0 };
}

/* In the child: becomes the command. No vCPU may run on CPU 0 of a machine with several (README.md, "The one trap"), so the
 * command gets all CPUs but that one. */
static void become(int in, int out, int err)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;
	CPU_ZERO(&set);
	for (long i = 1; i < cpus; i++)
		CPU_SET(i, &set);
	setsid();
	if ((cpus > 1 && sched_setaffinity(0, sizeof set, &set)) || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(125);
	struct rlimit files = { 1024, 524288 };
	setrlimit(RLIMIT_NOFILE, &files);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	if (chdir(request.folder)) {
		dprintf(2, "kvm-host: folder %s: %s\n", request.folder, strerror(errno));
		_exit(125);
	}
	environ = request.env.item;
	execvp(request.arg.item[0], request.arg.item);
	int status = errno == ENOENT ? 127 : 126;
	dprintf(2, "kvm-host: %s: %s\n", request.arg.item[0], strerror(errno));
	_exit(status);
}

/* Runs the command to its end and to the end of its output; returns its status as waitpid gives it. */
static int run(struct stream streams[3])
{
	int out[2], err[2], in[2] = { -1, -1 };
	if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		die("pipe");
	if (!request.stdin_)
		in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	else if (pipe2(in, O_CLOEXEC))
		die("pipe");
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signal(SIGPIPE, SIG_IGN);
	int deaths = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	pid_t command = fork();
	if (command < 0 || deaths < 0)
		die("fork");
	if (!command)
		become(in[0], out[1], err[1]);
	close(out[1]);
	close(err[1]);
	close(in[0]);
	streams[0].from = out[0];
	streams[1].from = err[0];
	streams[2].to = in[1];
	if (in[1] < 0)
		streams[2].from = -1;
	for (int i = 0; i < 3; i++) {
		fcntl(streams[i].from, F_SETFL, O_NONBLOCK);
		fcntl(streams[i].to, F_SETFL, O_NONBLOCK);
	}
	int status = 0, ended = 0;
	long beat = now_us() + BEAT_US;
	for (;;) {
		for (int i = 0; i < 3; i++)
			step(&streams[i], ended);
		if (streams[2].from < 0 && !streams[2].length && streams[2].to >= 0) {
			close(streams[2].to);
			streams[2].to = -1;
		}
		if (ended && streams[0].from < 0 && !streams[0].length && streams[1].from < 0 && !streams[1].length)
			return status;
		struct pollfd wait[4] = { waits_for(&streams[0]), waits_for(&streams[1]), waits_for(&streams[2]), { deaths, POLLIN, 0 } };
		long left = beat - now_us();
		poll(wait, 4, left > 0 ? left / 1000 + 1 : 0);
		if (now_us() >= beat) {
			say("\n");
			beat = now_us() + BEAT_US;
		}
		struct signalfd_siginfo info;
		while (read(deaths, &info, sizeof info) > 0)
			;
		int s;
		for (pid_t pid; (pid = waitpid(-1, &s, WNOHANG)) > 0;) {
			if (pid == command) {
				status = s;
				ended = 1;
				kill(-1, SIGKILL); /* what the command left behind must not keep its output open */
			}
		}
	}
}

int main(void)
{
	static struct stream streams[3];
	boot();
	control = open_port(1, O_RDWR);
	streams[0].to = open_port(2, O_WRONLY);
	streams[1].to = open_port(3, O_WRONLY);
	streams[2].from = open_port(4, O_RDONLY);
	say("ready\n");
	read_request(); /* the snapshot holds a machine that waits here */
	say("\n");
	long begin = now_us();
	set_time_and_seed();
	mount_root();
	long mounted = now_us();
	int status = run(streams);
	long ended = now_us();
	sync();
	say("exit %d %lu %lu %ld %ld %ld\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), streams[0].total,
	    streams[1].total, mounted - begin, ended - mounted, now_us() - ended);
	for (;;)
		pause();
}
