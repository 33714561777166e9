package sandbox

import (
	"errors"
	"fmt"
)

// A LeftBehindError says that something of the program's own is still there at its end.
type LeftBehindError struct {
	What string
	Err  error
}

func (e *LeftBehindError) Error() string { return fmt.Sprintf("%s is left behind: %v", e.What, e.Err) }
func (e *LeftBehindError) Unwrap() error { return e.Err }

// Interrupted returns the error of a program that was told to end, which leaves nothing to say of err but what could not
// be put back.
func Interrupted(err error) error {
	lines := []error{errors.New("interrupted")}
	if left := (*LeftBehindError)(nil); errors.As(err, &left) {
		lines = append(lines, left)
	}
	return errors.Join(lines...)
}
