/* The minimum cost of KVM: creates a machine of 2 MiB with an in-kernel irqchip and one vCPU, runs a few instructions in
 * real mode, and prints the time of each step in nanoseconds of CLOCK_MONOTONIC, which are instructions on the instruction
 * clock. Exits with 0 only if the guest did what it should, so it also proves that KVM works.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEMORY (2 << 20)
#define ROUNDS 200

/* The guest's 16-bit code, at 0x1000. Each block runs ROUNDS times. */
static const uint8_t code[] = {
	0xb0, 0x42,                         /* mov al, 0x42 */
	0xe6, 0x10,                         /* out 0x10, al      the first exit */
	0xbe, ROUNDS, 0x00,                 /* mov si, ROUNDS */
	0xe6, 0x11,                         /* out 0x11, al      exit to user space */
	0x4e, 0x75, 0xfb,                   /* dec si; jnz */
	0xe6, 0x12,                         /* out 0x12, al      mark */
	0xbe, ROUNDS, 0x00,                 /* mov si, ROUNDS */
	0xe6, 0x13,                         /* out 0x13, al      ioeventfd: handled in the kernel */
	0x4e, 0x75, 0xfb,                   /* dec si; jnz */
	0xe6, 0x14,                         /* out 0x14, al      mark */
	0xbf, ROUNDS, 0x00,                 /* mov di, ROUNDS */
	0x31, 0xc0, 0x0f, 0xa2,             /* xor ax, ax; cpuid: handled in the kernel */
	0x4f, 0x75, 0xf9,                   /* dec di; jnz */
	0xe6, 0x15,                         /* out 0x15, al      mark */
	0xb8, 0x00, 0x20, 0x8e, 0xd8,       /* mov ax, 0x2000; mov ds, ax */
	0xbf, ROUNDS, 0x00,                 /* mov di, ROUNDS */
	0xc6, 0x06, 0x00, 0x00, 0x01,       /* mov byte [0], 1   first touch of a page */
	0x05, 0x00, 0x01, 0x8e, 0xd8,       /* add ax, 0x100; mov ds, ax */
	0x4f, 0x75, 0xf3,                   /* dec di; jnz */
	0xe6, 0x16,                         /* out 0x16, al      mark */
	0xf4,                               /* hlt               never executed: the host does not re-enter */
};

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static long last;

static void step(const char *what, int rounds)
{
	long ns = now() - last;
	printf("%-12s %10ld\n", what, ns / rounds);
	last = now();
}

static int call(const char *what, int fd, unsigned long request, void *argument)
{
	int result = ioctl(fd, request, argument);
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

/* Runs the vCPU until it writes to `port`. Returns the number of exits before. */
static int run_to(int vcpu, struct kvm_run *run, uint16_t port)
{
	for (int exits = 0;; exits++) {
		call("KVM_RUN", vcpu, KVM_RUN, 0);
		if (run->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "exit reason %u\n", run->exit_reason);
			exit(1);
		}
		if (run->io.port == port)
			return exits;
	}
}

int main(void)
{
	long begin = last = now();
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		perror("/dev/kvm");
		return 1;
	}
	step("open", 1);
	int vm = call("KVM_CREATE_VM", kvm, KVM_CREATE_VM, 0);
	step("vm", 1);
	call("KVM_CREATE_IRQCHIP", vm, KVM_CREATE_IRQCHIP, 0);
	step("irqchip", 1);
	uint8_t *memory = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	madvise(memory, MEMORY, MADV_NOHUGEPAGE);
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (uintptr_t)memory };
	call("KVM_SET_USER_MEMORY_REGION", vm, KVM_SET_USER_MEMORY_REGION, &region);
	memcpy(memory + 0x1000, code, sizeof code);
	step("memory", 1);
	int vcpu = call("KVM_CREATE_VCPU", vm, KVM_CREATE_VCPU, 0);
	int size = call("KVM_GET_VCPU_MMAP_SIZE", kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_sregs sregs;
	call("KVM_GET_SREGS", vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	call("KVM_SET_SREGS", vcpu, KVM_SET_SREGS, &sregs);
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	call("KVM_SET_REGS", vcpu, KVM_SET_REGS, &regs);
	step("vcpu", 1);
	int event = eventfd(0, EFD_CLOEXEC);
	struct kvm_ioeventfd on = { .addr = 0x13, .len = 1, .fd = event, .flags = KVM_IOEVENTFD_FLAG_PIO };
	call("KVM_IOEVENTFD", vm, KVM_IOEVENTFD, &on);
	step("ioeventfd", 1);
	if (run_to(vcpu, run, 0x10) || ((uint8_t *)run)[run->io.data_offset] != 0x42)
		return 1;
	step("first-exit", 1);
	printf("%-12s %10ld\n", "in-all", now() - begin);
	last = now();
	if (run_to(vcpu, run, 0x12) != ROUNDS)
		return 1;
	step("pio", ROUNDS);
	run_to(vcpu, run, 0x14);
	step("pio-event", ROUNDS);
	uint64_t count = 0;
	if (read(event, &count, sizeof count) != sizeof count || count != ROUNDS)
		return 1;
	last = now();
	run_to(vcpu, run, 0x15);
	step("cpuid", ROUNDS);
	run_to(vcpu, run, 0x16);
	step("fresh-page", ROUNDS);
	for (int page = 0; page < ROUNDS; page++)
		if (memory[0x20000 + page * 0x1000] != 1)
			return 1;
	return 0;
}
