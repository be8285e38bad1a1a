// SPDX-License-Identifier: Apache-2.0

// Package house checks the shape of the repository: which package may import
// which, that every package says what it is, that every file names its licence
// and stays small. The table of imports is the design; a package that is not in
// it does not exist.
package house
