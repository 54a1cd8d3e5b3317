package projections

import "strconv"

// String is the rule as people find it: "CiliumNetworkPolicy default/web
// ingress[0]", with specs[1] in between where a policy has several.
func (r RuleRef) String() string {
	if r.Implicit != "" {
		return r.Implicit
	}
	s := r.Policy.String() + " "
	if r.Spec > 0 {
		s += "specs[" + strconv.Itoa(r.Spec) + "]."
	}
	return s + r.Section.String() + "[" + strconv.Itoa(r.Index) + "]"
}
