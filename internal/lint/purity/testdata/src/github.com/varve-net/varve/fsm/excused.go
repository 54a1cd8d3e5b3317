package fsm

func excused(m map[string]int) (out []string) {
	//purity:ordered the caller sorts
	for k := range m {
		out = append(out, k)
	}
	return out
}

func noReason(m map[string]int) (out []string) {
	/* want `//purity:ordered needs a reason` */ //purity:ordered
	for k := range m {                           // want `out grows in map order`
		out = append(out, k)
	}
	return out
}

func blankReason(m map[string]int) (out []string) {
	/* want `//purity:ordered needs a reason` */ //purity:ordered
	for k := range m {                           // want `out grows in map order`
		out = append(out, k)
	}
	return out
}

func unknown(m map[string]int) (out []string) {
	/* want `//purity:sorted is unknown; the only one is //purity:ordered REASON` */ //purity:sorted the caller sorts
	for k := range m {                                                               // want `out grows in map order`
		out = append(out, k)
	}
	return out
}

func tooFar(m map[string]int) (out []string) {
	/* want `//purity:ordered excuses nothing on the next line` */ //purity:ordered the caller sorts

	for k := range m { // want `out grows in map order`
		out = append(out, k)
	}
	return out
}

func idle(m map[string]int) (n int) {
	/* want `//purity:ordered excuses nothing on the next line` */ //purity:ordered a sum has no order
	for _, v := range m {
		n += v
	}
	return n
}

func onlyOrder(f func()) {
	/* want `//purity:ordered excuses nothing on the next line` */ //purity:ordered it is harmless
	go f()                                                         // want `a goroutine in a pure package`
}
