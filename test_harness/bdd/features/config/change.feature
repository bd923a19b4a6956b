@own-service
Feature: Changing the configuration
  A platform engineer changes a file under a running service, looks at what would happen, lets it
  happen, and takes it back. A slip of the pen changes nothing.

  Background:
    Given pool "small" with 1 engine of 1 slot and
      """
      queue: { capacity: 1, full_policy: reject }
      """

  @ORCH-3031
  Scenario: Look first, then change, then take it back
    When the configuration file says of "small"
      """
      queue: { capacity: 2, full_policy: reject }
      """
    And the operator posts to /v1/config/reload
      """
      { dry_run: true }
      """
    Then the answer is 200 with
      | applied          | false                       |
      | changes.0.key    | pools[small].queue.capacity |
      | changes.0.before | 1                           |
      | changes.0.after  | 2                           |
      | changes.0.effect | live                        |
    Given all slots of "small" are taken
    When acme submits to "small"
      | task   |
      | first  |
      | second |
    Then "second" is refused with
      | policy_label | reject |
    When the operator posts to /v1/config/reload
      """
      {}
      """
    Then the answer is 200 with
      | applied  | true |
      | revision | 2    |
    When "second" is sent again
    Then "second" is admitted
    When the operator posts to /v1/config/revert
    Then the answer is 200
    When the operator asks for /v1/config
    Then the answer is 200 with
      | config.pools.0.queue.capacity | 1 |
    When the engines of "small" go on
    Then "first" and "second" end well

  @ORCH-3030 @OC-CONFIG-6001 @ORCH-3031
  Scenario: A slip of the pen is named, and everything stays as it was
    When the configuration file says of "small"
      """
      queue: { capacity: 0, full_policy: reject }
      """
    And the operator posts to /v1/config/reload
      """
      {}
      """
    Then the answer is 400 with
      | code | INVALID_PARAMS |
    And its message names pools[0].queue.capacity
    When the operator asks for /v1/config
    Then the answer is 200 with
      | revision                      | 1 |
      | config.pools.0.queue.capacity | 1 |
    When acme submits to "small"
      | task    |
      | as ever |
    Then "as ever" ends well

  @ORCH-3030 @OC-CONFIG-6001
  Scenario: A key that nobody knows is an error, or a warning where that was asked for
    When the operator asks whether the service would start with
      """
      streams: { retain_forever: true }
      """
    Then it would not, and "streams.retain_forever" is named
    When the operator asks whether the service would start with
      """
      server: { config_mode: compat }
      streams: { retain_forever: true }
      """
    Then it would, and "streams.retain_forever" is named
