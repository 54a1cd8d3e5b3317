package testns

import (
	"fmt"
	"os"
)

// SkipDAD lets an interface of the thread's namespace use the IPv6 addresses that it
// gets at once, also the link-local one of the kernel; called inside Do, before the
// interface is up. Duplicate address detection takes up to two seconds and more on a
// busy machine, and without an address the kernel asks for no neighbour: after three
// seconds it gives up and drops the packet that waits.
func SkipDAD(name string) error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}
