// Package sock has the sockets of the DNS proxy, which speak for others: they
// take what was sent to any address, answer from the address that was asked, and
// ask from a container's address. All of it needs CAP_NET_ADMIN (IP_TRANSPARENT,
// SO_MARK) and CAP_NET_RAW.
package sock
