package main

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := &progress{&b}
		count, stop := p.start("working", 2000)
		time.Sleep(progressAfter / 2)
		count(1)
		stop()
		if b.Len() > 0 {
			t.Errorf("shown for a short work: %q", b.String())
		}

		count, stop = p.start("working", 2000)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { count(30) })
		}
		wg.Wait()
		time.Sleep(progressAfter + progressEvery/2)
		count(500)
		time.Sleep(progressEvery)
		stop()
		const want = "\r\x1b[Kworking: 1,500 of 2,000 (75 %)\r\x1b[Kworking: 2,000 of 2,000 (100 %)\r\x1b[K"
		if b.String() != want {
			t.Errorf("got %q, want %q", b.String(), want)
		}
	})
}

func TestNoProgressWithoutTerminal(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, w := range []interface{ Write([]byte) (int, error) }{&strings.Builder{}, null} {
		p := newProgress(w, options{})
		if p != nil {
			t.Errorf("progress on %T", w)
		}
		count, stop := p.start("working", 1)
		count(1)
		stop()
	}
}
