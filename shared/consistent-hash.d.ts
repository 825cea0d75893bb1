/** The part of `consistent-hash` 1.2.2 (untyped) that shared/ring.ts uses, and nothing that its defaults would make random. */
declare module 'consistent-hash' {
  class ConsistentHash<Member> {
    constructor(options: { range: number })
    add(member: Member, count: number, points: readonly number[]): this
    get(key: string, count: number): Member[]
  }
  export = ConsistentHash
}
