// SPDX-License-Identifier: Apache-2.0

package cache

import "sync/atomic"

// ReadStats counts the reads through one Blob, or through all of a Cache.
type ReadStats struct {
	Hits         int64 // reads served from disk alone
	Misses       int64 // reads that had to wait for the source
	HitBytes     int64 // bytes read from disk
	Fetches      int64 // requests made to the source, for reads and ahead of them
	FetchedBytes int64 // bytes that arrived from the source, as they came
	FetchErrors  int64 // requests to the source that failed
}

// Stats counts what a Cache did since Open. The tag tells a metrics exporter
// which fields may fall.
type Stats struct {
	ReadStats

	UsedBytes     int64 `metric:"gauge"` // disk space in use now
	LimitBytes    int64 `metric:"gauge"` // disk space the cache may use
	InflightBytes int64 `metric:"gauge"` // memory held by fetches and writes now
	Blobs         int64 `metric:"gauge"` // blobs open now

	WrittenBytes  int64 // bytes written to disk
	EvictedBytes  int64 // disk space freed to make room
	DroppedBytes  int64 // fetched bytes not kept because the disk was full, slow or failing
	CorruptBlocks int64 // blocks on disk that did not match their tag after a restart
	Resets        int64 // blobs forgotten because their record could not be used
	ReadErrors    int64 // reads of cache files that failed and went to the source
	WriteErrors   int64 // writes of cache files that failed

	LastDiskError string // cause of the latest of ReadErrors, WriteErrors or Resets
}

// counters is a ReadStats being counted.
type counters struct {
	hits, misses, hitBytes             atomic.Int64
	fetches, fetchedBytes, fetchErrors atomic.Int64
}

func (c *counters) load() ReadStats {
	return ReadStats{
		Hits:         c.hits.Load(),
		Misses:       c.misses.Load(),
		HitBytes:     c.hitBytes.Load(),
		Fetches:      c.fetches.Load(),
		FetchedBytes: c.fetchedBytes.Load(),
		FetchErrors:  c.fetchErrors.Load(),
	}
}

func (s *ReadStats) add(o ReadStats) {
	s.Hits += o.Hits
	s.Misses += o.Misses
	s.HitBytes += o.HitBytes
	s.Fetches += o.Fetches
	s.FetchedBytes += o.FetchedBytes
	s.FetchErrors += o.FetchErrors
}

// diskCounters counts what happens to the files of a Cache.
type diskCounters struct {
	used, written, evicted, dropped          atomic.Int64
	corrupt, resets, readErrors, writeErrors atomic.Int64
	lastError                                atomic.Pointer[string]
}

// failed counts err, which made the cache of no use for some bytes.
func (d *diskCounters) failed(counter *atomic.Int64, err error) {
	counter.Add(1)
	text := err.Error()
	d.lastError.Store(&text)
}

// fill sets the disk part of s.
func (d *diskCounters) fill(s *Stats) {
	s.UsedBytes = d.used.Load()
	s.WrittenBytes = d.written.Load()
	s.EvictedBytes = d.evicted.Load()
	s.DroppedBytes = d.dropped.Load()
	s.CorruptBlocks = d.corrupt.Load()
	s.Resets = d.resets.Load()
	s.ReadErrors = d.readErrors.Load()
	s.WriteErrors = d.writeErrors.Load()
	if e := d.lastError.Load(); e != nil {
		s.LastDiskError = *e
	}
}
