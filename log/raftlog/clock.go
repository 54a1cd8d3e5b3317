package raftlog

import "time"

// ClockTolerance is by how much this node's clock may be behind the log's time
// before that is an alarm.
const ClockTolerance = 5 * time.Second

// ClockBehind is by how much this node's clock is behind the effective time of the
// last event; 0 if it is not. Effective time never goes back: while the clock is
// behind, after a jump ahead that went into an event and back again, say, every
// event is stamped with the time of the last one before.
func (l *Log) ClockBehind() time.Duration {
	return max(0, time.Duration(l.View().TimeNS()-l.config.Clock()))
}

// watchClock says once that the clock is behind, and once that it is right again. The
// watcher calls it after every entry.
func (l *Log) watchClock() {
	behind := l.ClockBehind()
	if late := behind > ClockTolerance; late != l.clockLate {
		l.clockLate = late
		if late {
			l.config.Logger.Warn("the clock is behind the log's time: events keep the last one's time until it has caught up; set the clock right",
				"behind", behind)
			return
		}
		l.config.Logger.Info("the clock has caught up with the log's time")
	}
}
