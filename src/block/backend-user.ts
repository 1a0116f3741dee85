/** What a backend's owner may want to know. All optional. */
export interface BackendUser {
  /** A drained section begins: start nothing new (requests made anyway wait by themselves). */
  drainBegin?(): void;
  /** Something of its own is still under way, beyond the requests in flight. */
  isBusy?(): boolean;
  drainEnd?(): void;
  /** The node changed its size, or another node took its place. */
  resized?(): void;
}

export interface BackendProperties {
  /** In permission conflicts: "block device '/machine/...'", "an unnamed block device", "stream job 'job0'". */
  description: string;
  /** A drive's id, by which commands know it (none). */
  name?: string;
  perm: number;
  shared: number;
  user?: BackendUser;
  /**
   * Jobs say false: a drained section does not hold their requests back (one half of a copy must not wait while the
   * other holds a range that a guest waits for). They pause by themselves; the section waits until they are idle.
   */
  queuesWhenDrained?: boolean;
  /** A part of a job says false: it does not count as a user of the node of its own. */
  isUser?: boolean;
  /** Whose it is: drained sections of the same owner do not quiesce it. */
  owner?: object;
  /** A guest's disk (false): it asks for nothing while another process owns the image. */
  isGuest?: boolean;
}
