#include "init.h"

#include <sched.h>
#include <sys/fanotify.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

#define BEAT_US 1000000

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

/* The descriptor for which `s` waits, for poll. */
static struct pollfd waits_for(const struct stream *s)
{
	if (s->length)
		return (struct pollfd){ s->to, POLLOUT, 0 };
	return (struct pollfd){ s->from, POLLIN, 0 };
}

/* Executes the command in the child. On a machine with several CPUs no vCPU may run on CPU 0 (README.md, "No vCPU on
 * L1's CPU 0"), so the command gets all other CPUs. */
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

/* Begins to watch files that are opened on the root file system. Returns -1 if the request has no `trace`. */
static int trace(void)
{
	if (!request.trace)
		return -1;
	int fd = fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE, O_RDONLY | O_CLOEXEC | O_LARGEFILE);
	if (fd < 0 || fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN, AT_FDCWD, "/"))
		die("fanotify");
	return fd;
}

/* Reports each open of a regular file. */
static void say_opened(int trace)
{
	static struct fanotify_event_metadata events[256];
	char link[32], path[PATH_MAX];
	for (ssize_t left; (left = read(trace, events, sizeof events)) > 0;) {
		for (struct fanotify_event_metadata *event = events; FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
			struct stat status;
			if (event->fd < 0)
				continue;
			snprintf(link, sizeof link, "/proc/self/fd/%d", event->fd);
			ssize_t length = readlink(link, path, sizeof path - 1);
			if (length > 0 && !fstat(event->fd, &status) && S_ISREG(status.st_mode) && !memchr(path, '\n', length)) {
				path[length] = 0;
				say("opened %s\n", path);
			}
			close(event->fd);
		}
	}
}

/* Starts the command with pipes for `streams`. */
static pid_t start(struct stream streams[3])
{
	int out[2], err[2], in[2] = { -1, -1 };
	if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		die("pipe");
	if (!request.stdin_)
		in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	else if (pipe2(in, O_CLOEXEC))
		die("pipe");
	pid_t command = fork();
	if (command < 0)
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
	return command;
}

/* Reaps all ended processes. Returns whether `command` is among them, and its status. */
static int reap(pid_t command, int *status)
{
	int one, ended = 0;
	for (pid_t pid; (pid = waitpid(-1, &one, WNOHANG)) > 0;) {
		if (pid == command) {
			*status = one;
			ended = 1;
		}
	}
	return ended;
}

static int done(const struct stream *s)
{
	return s->from < 0 && !s->length;
}

/* Runs the command until its exit and the end of its output. Returns its status as from waitpid. */
int run(struct stream streams[3])
{
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signal(SIGPIPE, SIG_IGN);
	int deaths = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	int opened = trace();
	pid_t command = start(streams);
	int status = 0, ended = 0;
	long beat = now_us() + BEAT_US;
	for (;;) {
		if (opened >= 0)
			say_opened(opened);
		for (int i = 0; i < 3; i++)
			step(&streams[i], ended);
		if (done(&streams[2]) && streams[2].to >= 0) {
			close(streams[2].to);
			streams[2].to = -1;
		}
		if (ended && done(&streams[0]) && done(&streams[1]))
			return status;
		struct pollfd wait[5] = { waits_for(&streams[0]), waits_for(&streams[1]), waits_for(&streams[2]),
			{ deaths, POLLIN, 0 }, { opened, POLLIN, 0 } };
		long left = beat - now_us();
		poll(wait, 5, left > 0 ? left / 1000 + 1 : 0);
		if (now_us() >= beat) {
			say("\n");
			beat = now_us() + BEAT_US;
		}
		struct signalfd_siginfo info;
		while (read(deaths, &info, sizeof info) > 0)
			;
		if (reap(command, &status)) {
			ended = 1;
			kill(-1, SIGKILL); /* remaining processes must not keep its output open */
		}
	}
}
