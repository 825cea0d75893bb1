/** On whose behalf a request acts. */
export interface Principal {
  readonly name: string
  readonly admin: boolean
  /** No credentials came with the request. */
  readonly anonymous: boolean
}

export const anonymous: Principal = Object.freeze({ name: 'anonymous', admin: false, anonymous: true })
