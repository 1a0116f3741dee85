/** What some children say alike. */
export interface Version<V> {
  readonly voters: V[];
  readonly bytes: Buffer;
}

/** Who says what, the version with the most voters first; of several with as many, the one of the first child. */
export function countVotes<V>(said: ReadonlyArray<{ voter: V; bytes: Buffer }>): Array<Version<V>> {
  const versions: Array<Version<V>> = [];
  for (const { voter, bytes } of said) {
    const version = versions.find((known) => known.bytes.equals(bytes));
    if (version) version.voters.push(voter);
    else versions.push({ voters: [voter], bytes });
  }
  return versions.sort((a, b) => b.voters.length - a.voters.length);
}
