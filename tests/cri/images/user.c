/* Prints the effective user of a program with a set-user-ID bit. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %d\n", geteuid());
    return 0;
}
