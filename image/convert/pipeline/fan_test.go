// SPDX-License-Identifier: Apache-2.0

package pipeline

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// TestFan: each reader gets all of it, also what another has no use for.
func TestFan(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), (3*pieceSize+5)/16)
	for n := 1; n <= 3; n++ {
		got := make([][]byte, n)
		var readers []reader
		for i := range n {
			readers = append(readers, func(_ context.Context, r io.Reader) (err error) {
				got[i], err = io.ReadAll(r)
				return err
			})
		}
		readers = append(readers, func(_ context.Context, r io.Reader) error {
			_, err := io.CopyN(io.Discard, r, 10)
			return err
		})
		if err := fan(t.Context(), iotest.HalfReader(bytes.NewReader(content)), readers); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if !bytes.Equal(got[i], content) {
				t.Errorf("reader %d of %d got %d bytes, want %d", i, n, len(got[i]), len(content))
			}
		}
	}
}

// TestFanFails: the first error is the one that is returned, and ends all.
func TestFanFails(t *testing.T) {
	broken := errors.New("broken")
	all := func(_ context.Context, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	waits := func(ctx context.Context, _ io.Reader) error {
		<-ctx.Done()
		return ctx.Err()
	}
	fails := func(_ context.Context, r io.Reader) error {
		_, _ = r.Read(make([]byte, 1))
		return broken
	}
	endless := struct{ io.Reader }{iotest.DataErrReader(zeros{})}
	for name, tt := range map[string]struct {
		src     io.Reader
		readers []reader
	}{
		"a reader":             {endless, []reader{all, fails}},
		"one, another waiting": {endless, []reader{fails, waits}},
		"the source":           {iotest.ErrReader(broken), []reader{all, all}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := fan(t.Context(), tt.src, tt.readers); !errors.Is(err, broken) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// zeros are read without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
