// Package cluster holds what makes a node a member: its persistent identity and
// the configuration of Raft that goes with it.
package cluster
