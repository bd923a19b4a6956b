@own-service
Feature: Observed shares
  The operator sees on a dashboard that everybody gets what the weights promise.

  Background:
    Given pool "watched" with 1 engine of 1 slot and
      """
      queue: { capacity: 512, full_policy: reject }
      admission:
        fairness: { kind: wfq, tenants: [ { id: acme, weight: 3 }, { id: zeta, weight: 1 } ] }
      """

  @ORCH-3076
  Scenario: The metrics show that the observed shares follow the weights
    Given all slots of "watched" are taken
    When acme submits 80 batch tasks "acme" of 20 tokens to "watched"
    And zeta submits 80 batch tasks "zeta" of 20 tokens to "watched"
    And 80 tasks have run in "watched" before its engines stop
    Then the metrics show that of batch work acme got 3 times what zeta got
    When the engines of "watched" go on
    Then all of "acme" end well
    And all of "zeta" end well
