@own-service
Feature: Rate limits and quotas
  A client that asks too often, or a tenant that has its share, is told when to come back; nobody
  else notices.

  Background:
    Given pool "rate" with 1 engine of 1 slot and
      """
      admission: { priorities: [ { name: interactive, rate_limit_rps: 1 } ] }
      """
    And pool "quota" with 1 engine of 1 slot and
      """
      admission: { fairness: { kind: wfq, tenants: [ { id: acme, rps: 1 } ] } }
      """
    And pool "narrow" with 1 engine of 2 slots and
      """
      admission: { fairness: { kind: wfq, tenants: [ { id: acme, max_concurrent: 1 } ] } }
      """

  @ORCH-3006 @ORCH-2007
  Scenario: A client over its rate comes back when it is told to
    When acme submits to "rate"
      | task   | priority    |
      | first  | interactive |
      | second | interactive |
      | report | batch       |
    And acme's colleague submits to "rate"
      | task   |
      | theirs |
    Then "first", "report" and "theirs" are admitted
    And "second" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | rate-limit       |
      | retriable    | true             |
    And "second" is told to come back in 1 to 1000 ms
    When "second" is sent again until it is admitted
    Then "first", "second", "report" and "theirs" end well

  @ORCH-3077 @ORCH-2007
  Scenario: A tenant's quota counts all its clients, and no other tenant's
    When acme submits to "quota"
      | task  | priority    |
      | first | interactive |
    And acme's colleague submits to "quota"
      | task   | priority |
      | second | batch    |
    And zeta submits to "quota"
      | task  |
      | other |
    Then "first" and "other" are admitted
    And "second" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | quota            |
      | retriable    | true             |
    When "second" is sent again until it is admitted
    Then "first", "second" and "other" end well

  @ORCH-3024 @ORCH-3006
  Scenario: The same task again costs nothing
    When zeta submits to "rate"
      | task  |
      | first |
    And "first" is sent again
    Then "first" is admitted
    And "first" ends well

  @ORCH-3077
  Scenario: A tenant at its limit of running tasks waits, and others pass
    Given the engines of "narrow" stop after 1 tokens of each task
    When acme submits to "narrow"
      | task   |
      | first  |
      | second |
    And zeta submits to "narrow"
      | task  |
      | other |
    Then "first", "second" and "other" are admitted
    And 2 tasks run in "narrow", and "second" does not
    When the engines of "narrow" go on
    Then "narrow" ran "first", "other", "second" in this order
    And "first", "second" and "other" end well
