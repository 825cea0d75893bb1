/** What the read side has done since the worker started: plain numbers that only grow, for the metrics page. */
export interface ReadCounters {
  /** Reads asked for by clients, and those of them that shared another's read. */
  reads: number
  sharedReads: number
  /** Requests sent to nodes for them. */
  attempts: number
  hedges: number
  hedgesWon: number
  /** A byte of a shard that is left alone because it was slow. */
  probes: number
  /** Another replica asked before the first byte, after a failure. */
  retries: number
  /** Another replica asked in the middle of a body. */
  resumes: number
  /** A node that was silent for a second while its receiver was ready. */
  stalls: number
  /** All nodes asked whether they hold a blob. */
  searches: number
  /** Bodies whose digest did not match. */
  corruptBodies: number
  /** Streams cut after their first byte because no copy could be reached in time or the bytes were wrong. */
  cutStreams: number
  /** Reads refused because no replica could be reached. */
  unreachable: number
  /** Body bytes received from nodes. */
  bytes: number
}

export function newReadCounters(): ReadCounters {
  return {
    reads: 0,
    sharedReads: 0,
    attempts: 0,
    hedges: 0,
    hedgesWon: 0,
    probes: 0,
    retries: 0,
    resumes: 0,
    stalls: 0,
    searches: 0,
    corruptBodies: 0,
    cutStreams: 0,
    unreachable: 0,
    bytes: 0,
  }
}
