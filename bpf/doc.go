// Package bpf holds the datapath programs and gets them into the kernel: it
// loads them, pins their maps and attaches them to the host side of veth pairs.
// What the maps contain is package dataplane's affair.
//
// Everything is pinned below a directory on a bpffs, in a subdirectory named
// after the layout of the maps:
//
//	PIN/v1/maps/ct4            each map
//	PIN/v1/links/7-from        TCX ingress of interface 7: from_container
//	PIN/v1/links/7-to          TCX egress of interface 7: to_container
//	PIN/v1/next/7-to           one of them for the moment before it has that name
//
// On a kernel without TCX the pins of links are those of the programs that
// interface 7's filters run.
//
// Nothing here is undone by Close: packets flow, and policy holds, while no
// process of ours runs. RemoveAll is what takes it out of the kernel.
package bpf

//go:generate env BPF2GO_CC=clang-19 BPF2GO_STRIP=llvm-strip-19 GOPACKAGE=bpf go tool bpf2go -target bpfel -cflags "-std=gnu23 -O2 -g -mcpu=v3 -Wall -Wextra -Werror -fno-strict-aliasing -nostdinc -Iheaders -Iinclude" endpoint endpoint.c
//go:generate mkdir -p testdata
//go:generate clang-19 -target bpfel -std=gnu23 -O2 -g -mcpu=v3 -Wall -Wextra -Werror -fno-strict-aliasing -nostdinc -Iheaders -Iinclude -fdebug-compilation-dir . -DVARVE_LAYOUT_0 -c endpoint.c -o testdata/layout0_bpfel.o
//go:generate llvm-strip-19 -g testdata/layout0_bpfel.o
