package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/varve-net/varve/log/eventpb"
)

// compileGroup checks a group of AWS. The error is an ErrInvalid.
func compileGroup(pb *eventpb.AwsGroup) (*Group, error) {
	if pb == nil {
		return nil, fmt.Errorf("%w: missing", ErrInvalid)
	}
	g := &Group{
		SecurityGroupIDs: slices.Clone(pb.SecurityGroupIds), SecurityGroupNames: slices.Clone(pb.SecurityGroupNames), Region: pb.Region,
	}
	for _, l := range pb.Labels {
		g.Labels = append(g.Labels, GroupLabel{l.GetKey(), l.GetValue()})
	}
	for _, list := range []struct {
		name   string
		values []string
	}{
		{"security_group_ids", g.SecurityGroupIDs}, {"security_group_names", g.SecurityGroupNames},
	} {
		if n := len(list.values); n > maxGroupTerms {
			return nil, fmt.Errorf("%s: %w: %d of them, the most is %d", list.name, ErrInvalid, n, maxGroupTerms)
		}
		for _, v := range list.values {
			if problem := checkGroupTerm(v); problem != "" || v == "" {
				return nil, fmt.Errorf("%s %q: %w: %s", list.name, v, ErrInvalid, cmp.Or(problem, "empty"))
			}
		}
		slices.Sort(list.values)
	}
	g.SecurityGroupIDs = slices.Compact(g.SecurityGroupIDs)
	g.SecurityGroupNames = slices.Compact(g.SecurityGroupNames)
	if n := len(g.Labels); n > maxGroupTerms {
		return nil, fmt.Errorf("labels: %w: %d of them, the most is %d", ErrInvalid, n, maxGroupTerms)
	}
	slices.SortFunc(g.Labels, func(a, b GroupLabel) int { return strings.Compare(a.Key, b.Key) })
	for i, l := range g.Labels {
		if problem := cmp.Or(checkGroupTerm(l.Key), checkGroupTerm(l.Value)); problem != "" || l.Key == "" {
			return nil, fmt.Errorf("labels %q: %w: %s", l.Key, ErrInvalid, cmp.Or(problem, "empty key"))
		}
		if i > 0 && g.Labels[i-1].Key == l.Key {
			return nil, fmt.Errorf("labels %q: %w: given twice", l.Key, ErrInvalid)
		}
	}
	if problem := checkGroupTerm(g.Region); problem != "" {
		return nil, fmt.Errorf("region %q: %w: %s", g.Region, ErrInvalid, problem)
	}
	return g, nil
}

// checkGroupTerm returns what is wrong with a part of a group, or "". AWS allows
// 256 characters for the value of a tag.
func checkGroupTerm(s string) string {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > 256 {
		return "must be at most 256 characters of UTF-8"
	}
	return ""
}

// String is canonical.
func (g *Group) String() string {
	var parts []string
	for _, l := range g.Labels {
		parts = append(parts, "label "+strconv.Quote(l.Key)+"="+strconv.Quote(l.Value))
	}
	for _, id := range g.SecurityGroupIDs {
		parts = append(parts, "id "+strconv.Quote(id))
	}
	for _, name := range g.SecurityGroupNames {
		parts = append(parts, "name "+strconv.Quote(name))
	}
	if g.Region != "" {
		parts = append(parts, "region "+strconv.Quote(g.Region))
	}
	return strings.Join(parts, ",")
}

var (
	groupSchema    = schema{fields: []string{"aws"}}
	awsGroupSchema = schema{fields: []string{"labels", "securityGroupsIds", "securityGroupsNames", "region"}}
)

// groupPeer reads an item of toGroups or fromGroups. One without a provider
// selects no one.
func (w *walker) groupPeer(v *value, path string) *eventpb.Peer {
	o, ok := w.object(v, path, groupSchema)
	if !ok {
		return nil
	}
	aws, p := o.get("aws")
	if aws == nil {
		w.warn(v.line, path, "names no provider and so selects no one", "write aws: with the group, or remove the entry")
		return nil
	}
	if o, ok = w.object(aws, p, awsGroupSchema); !ok {
		return nil
	}
	pb := &eventpb.AwsGroup{
		SecurityGroupIds:   w.groupTerms(o, "securityGroupsIds"),
		SecurityGroupNames: w.groupTerms(o, "securityGroupsNames"),
	}
	if labels, p := o.get("labels"); labels != nil {
		w.stringMap(labels, p)
		for _, f := range labels.fields {
			label := &eventpb.GroupLabel{Key: f.key}
			if f.val.kind != kindNull {
				label.Value = f.val.text
			}
			pb.Labels = append(pb.Labels, label)
		}
		slices.SortFunc(pb.Labels, func(a, b *eventpb.GroupLabel) int { return strings.Compare(a.Key, b.Key) })
	}
	if region, p := o.get("region"); region != nil {
		pb.Region, _ = w.str(region, p)
	}
	if _, err := compileGroup(pb); err != nil {
		w.invalid(aws.line, p, withoutClass(err), "")
		return nil
	}
	return &eventpb.Peer{Peer: &eventpb.Peer_AwsGroup{AwsGroup: pb}}
}

// groupTerms is the strings of a list, sorted.
func (w *walker) groupTerms(o object, field string) []string {
	list, path := o.get(field)
	if list == nil {
		return nil
	}
	var out []string
	for i, item := range w.list(list, path, maxGroupTerms) {
		if s, ok := w.str(item, index(path, i)); ok {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
