/* What the parts of PID 1 share: init.c (control port, request, main), machine.c (from boot to root file system), command.c. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LIST_MAX 65536 /* entries of one request list */
#define CHUNK 65536    /* bytes carried at a time, a pipe's capacity */

struct list {
	char *item[LIST_MAX];
	int count;
};

struct request {
	char *time;               /* seconds.nanoseconds since 1970 */
	char *seed;               /* any text, stirred into the kernel's random numbers */
	char *folder;             /* working directory of the command */
	char *modules;            /* folder of this kernel's modules, on the outer machine; its last part is the release */
	char *stdin_;             /* present: port 4 feeds standard input, else it is /dev/null */
	char *trace;              /* present: every file that is opened is reported */
	struct list out;          /* folders of the outer machine shared for writing; entry N has the 9p tag `outN` */
	struct list stage;        /* files and folders to copy into memory first */
	struct list arg, env;
};
extern struct request request;

/* One direction of bytes: from -> buffer -> to. Both are non-blocking; -1 is closed. */
struct stream {
	int from, to;
	size_t start, length;
	unsigned long total; /* bytes written to `to` */
	char buffer[CHUNK];
};

/* init.c */
long now_us(void); /* CLOCK_MONOTONIC in microseconds */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
__attribute__((noreturn)) void die(const char *what);

/* machine.c */
void boot(void);
int open_port(int number, int flags);
void enter(void); /* gives the machine the time, entropy and the root file system of the request */

/* command.c */
int run(struct stream streams[3]);
