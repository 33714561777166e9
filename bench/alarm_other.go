//go:build !linux

package main

import "time"

// An alarm is as fine as Go's timers.
type alarm struct{}

func newAlarm() (*alarm, error) { return &alarm{}, nil }

// sleep returns when d is over.
func (a *alarm) sleep(d time.Duration) error {
	time.Sleep(d)
	return nil
}

func (a *alarm) close() {}
