/*
 * SPDX-License-Identifier: Apache-2.0
 *
 * Asks libc for the addresses of a name and prints them, one a line. The exit code is 1
 * if there are none.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *all, *one;
	char text[INET6_ADDRSTRLEN];
	int err;

	if (argc != 2) {
		fprintf(stderr, "usage: %s NAME\n", argv[0]);
		return 2;
	}
	err = getaddrinfo(argv[1], NULL, &hints, &all);
	if (err) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(err));
		return 1;
	}
	for (one = all; one; one = one->ai_next) {
		const void *addr = one->ai_family == AF_INET6
			? (const void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr
			: (const void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr;

		puts(inet_ntop(one->ai_family, addr, text, sizeof(text)));
	}
	freeaddrinfo(all);
	return 0;
}
