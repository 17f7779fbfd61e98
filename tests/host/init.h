/* Shared by init.c (control port, request, main), machine.c (from boot to the root file system) and command.c. */
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
#define CHUNK 65536    /* bytes copied at a time, the capacity of a pipe */

struct list {
	char *item[LIST_MAX];
	int count;
};

struct request {
	char *time;               /* seconds.nanoseconds since 1970 */
	char *seed;               /* any text, which is mixed into the kernel's entropy */
	char *folder;             /* working directory of the command */
	char *modules;            /* directory of this kernel's modules on the outer machine, named after the release */
	char *stdin_;             /* if present, standard input comes from port 4, else from /dev/null */
	char *trace;              /* if present, every opened file is reported */
	struct list out;          /* directories of the outer machine shared for writing; entry N has the 9p tag `outN` */
	struct list stage;        /* files and directories to copy into memory first */
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
void enter(void); /* sets time and entropy, and mounts the root file system of the request */

/* command.c */
int run(struct stream streams[3]);
