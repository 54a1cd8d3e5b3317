package fsm

import (
	"errors"
	"fmt"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Bounds of a restore that is under way.
const (
	// stagingNS is how long after its last part a restore is forgotten.
	stagingNS = 10 * 60 * 1_000_000_000
	// maxStaged bounds what a restore may stage, in bytes of canonical rows: some
	// tens of thousands of policies.
	maxStaged  = 64 << 20
	maxRestore = 64 // bytes of a restore's id
)

// part is a row: a part of a restore that is under way. Its key is its number.
type part struct {
	restore  string
	set      *eventpb.SnapshotStaged // as in the log
	policies []*policy.Policy        // of set.Policies, in their order
	node     string                  // that took the request
	revision log.Revision
	timeNS   int64 // effective time
}

// staging sums up the parts that are there. It follows from them, and is rebuilt from a
// snapshot. The zero staging is of no restore.
type staging struct {
	Staging
	digest log.Digest
	bytes  int
	last   string // key of the last row
}

// Staging is a restore that is under way.
type Staging struct {
	Restore  string
	Node     string // that took its first part
	Parts    uint32
	Revision log.Revision // of its first part
	TimeNS   int64        // effective time of its last part
}

// Staging is the restore that is under way; false if there is none.
func (v View) Staging() (Staging, bool) {
	var s Staging
	for p := range all(v.tables().parts) {
		s.add(p)
	}
	return s, s.Restore != ""
}

func (s *Staging) add(p *part) {
	if s.Parts == 0 {
		s.Restore, s.Node, s.Revision = p.restore, p.node, p.revision
	}
	s.Parts, s.TimeNS = s.Parts+1, p.timeNS
}

// add checks what a part says, and that it is the next one, and counts it in. After
// an error the staging is of no use.
func (s *staging) add(p *part) error {
	if p.set.Part != s.Parts {
		return fmt.Errorf("part: %d, the next one is %d", p.set.Part, s.Parts)
	}
	if len(p.set.Namespaces)+len(p.set.Policies) == 0 {
		return errors.New("holds neither a namespace nor a policy")
	}
	var own log.Digest
	var scratch []byte
	row := func(key string, hash log.Hash) error {
		if key <= s.last {
			return errors.New("out of order, or given twice")
		}
		s.last = key
		own.Add(hash)
		s.digest.Add(hash)
		if s.bytes += len(key) + len(scratch); s.bytes > maxStaged {
			return fmt.Errorf("more than %d bytes in all", maxStaged)
		}
		return nil
	}
	for i, n := range p.set.Namespaces {
		err := checkNamespace(n.GetName(), n.GetLabels())
		if scratch = appendMap(scratch[:0], n.GetLabels()); err == nil {
			err = row("n"+n.Name, declaredNamespace(n.Name, scratch))
		}
		if err != nil {
			return fmt.Errorf("namespaces[%d]: %.80q: %w", i, n.GetName(), err)
		}
	}
	for i, compiled := range p.policies {
		key := policyKey(compiled.Ref)
		scratch = appendPolicySet(scratch[:0], p.set.Policies[i])
		if err := row("p"+key, declaredPolicy(key, scratch)); err != nil {
			return fmt.Errorf("policies[%d]: %s: %w", i, compiled.Ref, err)
		}
	}
	if sum, want := own.Sum(), p.set.Digest; string(sum[:]) != string(want) {
		return fmt.Errorf("digest: %x, what it holds has %s", want, sum)
	}
	s.Staging.add(p)
	return nil
}

// checkNamespace checks a namespace as its row has it.
func checkNamespace(name string, labels map[string]string) error {
	if err := policy.CheckNamespace(name); err != nil {
		return err
	}
	if err := checkLabels(labels); err != nil {
		return err
	}
	if labels[labelNamespaceName] != name {
		return fmt.Errorf("label %s is %.80q, must be its name", labelNamespaceName, labels[labelNamespaceName])
	}
	return nil
}

// checkRestore checks a restore's id.
func checkRestore(id string) error {
	if id == "" || len(id) > maxRestore {
		return fmt.Errorf("restore: %d bytes, want 1 to %d", len(id), maxRestore)
	}
	if err := checkText(id, maxRestore, false); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// underWay tells whether a restore is, at a time.
func (s *State) underWay(now int64) bool {
	return s.staged.Restore != "" && now-s.staged.TimeNS < stagingNS
}

// stagingOf finds the restore that an event is about.
func (s *State) stagingOf(c *change, restore string) (*staging, error) {
	if err := checkRestore(restore); err != nil {
		return nil, err
	}
	if !s.underWay(c.now) || s.staged.Restore != restore {
		return nil, fmt.Errorf("restore %s: is not under way: it was never begun, was abandoned or done, or its last part is more than 10 minutes old; restore again", restore)
	}
	return &s.staged, nil
}

// rebuildStaged sums up the parts, which were checked when they were staged.
func (s *State) rebuildStaged() {
	s.staged = staging{}
	for p := range all(s.parts) {
		if err := s.staged.add(p); err != nil {
			panic(fmt.Sprintf("fsm: part %d of restore %s, which was staged: %v", p.set.Part, p.restore, err))
		}
	}
}

// unstage forgets the restore that is under way.
func (s *State) unstage() {
	for i := range s.staged.Parts {
		remove(s, s.parts, &s.write.part, i)
	}
	s.staged = staging{}
}

// collectStaged forgets a restore that nobody goes on with.
func (s *State) collectStaged(now int64) {
	if s.staged.Restore != "" && !s.underWay(now) {
		s.unstage()
	}
}

func (s *State) putPart(p part) { put(s, s.parts, &s.write.part, p.set.Part, p) }
