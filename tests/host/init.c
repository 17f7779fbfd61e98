/* PID 1 of the emulated KVM host: the only program in its initramfs.
 *
 * It boots the machine (`boot`), says `ready` on port 1 and waits for a request. The snapshot is taken while it waits, so
 * each run does the rest: it reads the request, mounts the outer machine's root file system below a tmpfs overlay, runs the
 * command, copies its streams, and reports its status. A booted machine does not end itself: the outer side ends it after
 * the last byte.
 *
 * Ports (virtio-serial, /dev/vport0pN):  1 control, 2 stdout, 3 stderr, 4 stdin.
 * Control, input:     records `KEY VALUE\0`, ended by an empty record (keys: see `struct request`).
 * Control, output:    lines. `ready`; an empty line once a second (the heartbeat); `opened PATH`; `fail TEXT`;
 *                     `exit STATUS STDOUT_BYTES STDERR_BYTES MOUNT_US COMMAND_US SYNC_US`.
 */
#include "init.h"

#include <stdarg.h>

#define REQUEST_MAX (4 << 20) /* bytes; Linux accepts at most 6 MiB of arguments and environment */

struct request request;
static int control = -1;

long now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Sends one line to the outer side. All ports are non-blocking: a blocking write to a virtio port would spin in the kernel
 * with interrupts disabled until the other side has read it. */
void say(const char *format, ...)
{
	char line[PATH_MAX + 32];
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

/* Reports that `what` failed with errno, and waits until the outer side ends the machine. Before the control port exists,
 * the report goes to the kernel's log (level 2, which `quiet` shows), and the exit of PID 1 ends the machine. */
void die(const char *what)
{
	const char *why = strerror(errno);
	if (control < 0) {
		control = open("/dev/kmsg", O_WRONLY);
		say("<2>init: %s: %s\n", what, why);
		_exit(1);
	}
	say("fail %s: %s\n", what, why);
	for (;;)
		pause();
}

static void take_record(char *record)
{
	char *value = strchr(record, ' ');
	if (!value)
		return;
	*value++ = 0;
	struct { const char *key; char **one; struct list *many; } keys[] = {
		{ "time", &request.time, NULL }, { "seed", &request.seed, NULL }, { "folder", &request.folder, NULL },
		{ "modules", &request.modules, NULL }, { "stdin", &request.stdin_, NULL }, { "trace", &request.trace, NULL },
		{ "out", NULL, &request.out }, { "stage", NULL, &request.stage }, { "arg", NULL, &request.arg },
		{ "env", NULL, &request.env },
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
		if (n <= 0) { /* 0: the outer side has not connected yet */
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

int main(void)
{
	static struct stream streams[3];
	boot();
	control = open_port(1, O_RDWR);
	streams[0].to = open_port(2, O_WRONLY);
	streams[1].to = open_port(3, O_WRONLY);
	streams[2].from = open_port(4, O_RDONLY);
	say("ready\n");
	read_request(); /* the snapshot is a machine that waits here */
	say("\n");
	long begin = now_us();
	enter();
	long mounted = now_us();
	int status = run(streams);
	long ended = now_us();
	sync();
	say("exit %d %lu %lu %ld %ld %ld\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), streams[0].total,
	    streams[1].total, mounted - begin, ended - mounted, now_us() - ended);
	for (;;)
		pause();
}
