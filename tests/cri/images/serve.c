/* serve [PORT]: a web server that answers each request with 200. Its process has the name and the pid file of nginx, and it logs
 * a word of httpd, because the suite looks for them in its images. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NAME "nginx: master process"

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) != 0 || listen(server, 64) != 0) {
        perror("serve");
        exit(1);
    }
    return server;
}

int main(int count, char **words) {
    if (strcmp(words[0], NAME) != 0) {
        execl("/serve", NAME, count > 1 ? words[1] : "80", (char *)NULL);
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, _exit);
    FILE *file = fopen("/var/run/nginx.pid", "w");
    if (file != NULL) {
        fprintf(file, "%d\n", getpid());
        fclose(file);
    }
    int server = listen_on(atoi(words[1]));
    puts("httpd -D FOREGROUND");
    fflush(stdout);
    for (;;) {
        int client = accept(server, NULL, NULL);
        char request[4096];
        if (client >= 0 && read(client, request, sizeof request) > 0) {
            write(client, answer, sizeof answer - 1);
        }
        close(client);
    }
}
