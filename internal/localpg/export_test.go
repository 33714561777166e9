//go:build unix && !aix && !solaris

package localpg

// DiesWithParent is for the tests outside of the package.
const DiesWithParent = diesWithParent
