// Package relay asks DNS servers for containers: it takes questions that the
// kernel handed over, lets those pass that policy admits, asks the server that was
// asked, from the container's own address, and gives the answer back once
// everything that the container may now do is in place.
//
// UDP runs on a few threads, each a loop around epoll that does all there is to do
// with a datagram; a question allocates nothing and changes no thread. TCP, which
// is rare, has goroutines.
package relay
