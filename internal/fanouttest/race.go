//go:build race

package fanouttest

const raced = true
