package raftlog

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// historyDir is the folder of package history within Config.Dir.
const historyDir = "history"

// HistoryBytes is the size of the files that hold every record. It asks for the
// size of one file in 64 MiB, and waits for nobody.
func (l *Log) HistoryBytes() (int64, error) {
	files, err := os.ReadDir(filepath.Join(l.config.Dir, historyDir))
	if err != nil {
		return 0, err
	}
	var size int64
	for _, f := range files {
		info, err := f.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since
		case err != nil:
			return 0, err
		default:
			size += info.Size()
		}
	}
	return size, nil
}

// HistoryLost is how many revisions are known to be lost from the history.
func (l *Log) HistoryLost() uint64 {
	var n uint64
	for _, lost := range l.history.Lost() {
		n += uint64(lost.Last - lost.First + 1)
	}
	return n
}
